"""Tinker's SDKs save, load and resume: exactly, with the optimizer; anew, without."""

from __future__ import annotations

import interop_reference
from interop_sdk import NEWEST, Sdk, one


def test_saving_and_resuming(sdk: Sdk, checkpoints_reference: interop_reference.Seen) -> None:
    seen = sdk.run("checkpoints")

    def logprobs(what: str) -> list[list[float]]:
        values: list[list[float]] = one(seen, what)["logprobs"]
        return values

    middle = one(checkpoints_reference, "middle")["logprobs"]
    end = one(checkpoints_reference, "uninterrupted")["logprobs"]
    assert logprobs("middle") == middle
    assert logprobs("uninterrupted") == end
    saved = one(seen, "saved")
    assert saved["path"] == f"tinker://{saved['model_id']}/weights/middle"

    assert one(seen, "resumed id")["rank"] == interop_reference.RANK
    assert logprobs("resumed, before") == middle
    assert logprobs("resumed") == end
    assert logprobs("weights only, before") == middle
    assert logprobs("weights only") != end
    assert logprobs("other") != middle
    assert logprobs("loaded with optimizer, before") == middle
    assert logprobs("loaded with optimizer") == end
    # The weights without the optimizer's memory are a third thing, however they were loaded.
    assert logprobs("loaded") == logprobs("weights only")

    taken = one(seen, "taken name")["failure"]
    assert taken["type"] == "RequestFailedError"
    assert taken["category"] == "user"
    assert "middle" in taken["message"]
    assert one(seen, "overwritten")["same"]
    weights = one(seen, "weights info")
    assert (weights["base_model"], weights["lora_rank"]) == (
        sdk.base_model,
        interop_reference.RANK,
    )
    missing = one(seen, "missing")["failure"]
    assert missing["type"] == "RequestFailedError"
    assert "missing" in missing["message"]
    assert logprobs("after a failed load") == logprobs("loaded")
    if sdk.name == NEWEST:
        assert one(seen, "metadata")["user_metadata"] == {"note": "kept"}
