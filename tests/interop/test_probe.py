"""Every public method of the SDKs' four clients: served, or not offered for a reason."""

from __future__ import annotations

from interop_sdk import Sdk, of

ACCOUNT = "not offered by this gateway"
NOT_OFFERED = {
    "RestClient.get_audit_log": ACCOUNT,
    "RestClient.get_billing_usage": ACCOUNT,
    "RestClient.get_current_checkpoint_storage_usage": ACCOUNT,
    "RestClient.export_session_trace": "this gateway records no timelines of sessions",
    # Asks no server: it reads the claims of the vendor's own login.
    "RestClient.whoami": "whoami requires JWT auth",
}
"""What is not served, as it is and as a coroutine, and what the caller is told."""

OF_THE_SDK = "AsyncTinker client called from incorrect event loop"
"""What a coroutine of the older SDKs fails with before it asks anybody."""


def test_every_public_method(direct_sdk: Sdk) -> None:
    methods = {line["name"]: line for line in of(direct_sdk.run("probe"), "method")}
    missing = {name: line for name, line in methods.items() if not line["served"]}
    served = len(methods) - len(missing)
    print(f"interop: {direct_sdk.name}: {served} of {len(methods)} public methods are served")
    for name, line in missing.items():
        print(f"interop:   {name}: {line['error']} {line['status']}: {line['message'][:300]}")
    expected = {name for name in methods if name.removesuffix("_async") in NOT_OFFERED}
    assert set(missing) == expected
    for name, line in missing.items():
        words = NOT_OFFERED[name.removesuffix("_async")]
        assert words in line["message"] or line["message"] == OF_THE_SDK, (name, line)
