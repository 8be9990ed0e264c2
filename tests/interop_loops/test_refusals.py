"""What is refused is told at once, in words, and leaves nothing behind."""

from __future__ import annotations

from interop_sdk import one
from loops_sdk import LoopsSdk

WORDS = {
    "loss": "no_such_loss",
    "setting": "epsilon",
    "shape": "target_tokens",
    "token": "5000",
    "long": "max_seq_len is 32",
    "empty": "data",
    "top_k": "top_k_logprobs",
}


def test_refusals(sdk: LoopsSdk) -> None:
    seen = sdk.run("refusals")
    for name, words in WORDS.items():
        told = one(seen, name)
        assert (told["type"], told["status"]) == ("HTTPStatusError", 422), told
        assert words in told["message"]
    assert one(seen, "step")["optimizer"]["grad_norm:mean"] == 0.0
    assert one(seen, "after")["loss"] > 0
    key = one(seen, "key")
    assert (key["status"], key["source"], key["code"]) == (401, "06", "unauthenticated")
    assert one(seen, "team")["type"] == "ValueError"
    assert one(seen, "base model")["status"] == 404
    assert "no-such-model" in one(seen, "base model")["message"]
    for name in ("max_seq_len", "base_checkpoint"):
        assert one(seen, name)["status"] == 422
        assert name in one(seen, name)["message"]
    if sdk.capacity == "serverless":
        told = one(seen, "no run")
        assert (told["status"], told["source"]) == (400, "06")
        assert told["code"] == "run_or_sampler_required"
        told = one(seen, "another run")
        assert (told["status"], told["source"], told["code"]) == (403, "06", "run_mismatch")
    told = one(seen, "the run")
    assert (told["status"], told["source"]) == (404, None)
    assert told["reason"] == "OPERATION_NOT_FOUND"
