"""Every public method of the SDKs' four clients: served, or not offered for a reason."""

from __future__ import annotations

from interop_sdk import Sdk, of

ACCOUNT = "of the vendor's own accounts"
NOT_OFFERED = {
    "RestClient.get_audit_log": ACCOUNT,
    "RestClient.get_billing_usage": ACCOUNT,
    "RestClient.get_current_checkpoint_storage_usage": ACCOUNT,
    "RestClient.assign_session_project": ACCOUNT,
    "RestClient.export_session_trace": "of the vendor's own console",
}
"""What is not served, and why; each as it is and as a coroutine."""


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
        assert "not offered by this gateway" in line["message"], (name, line)
        assert line["status"] in (403, 404, 501), (name, line)
