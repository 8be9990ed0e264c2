"""The Loops SDK samples: the tokens and numbers are those that the gRPC client gets."""

from __future__ import annotations

from typing import Any

import pytest
from interop_examples import PROMPT
from interop_sdk import Seen, one
from loops_reference import OWN_PROMPT, floats, singles
from loops_sdk import LoopsSdk


@pytest.fixture(scope="session")
def stops(sampling_reference: dict[str, Any], micro_model_dir: Any) -> dict[str, Any]:
    """Ways to end the base model's greedy sequence, and after how many tokens."""
    from transformers import AutoTokenizer

    tokens = sampling_reference["greedy"].tolist()
    text = AutoTokenizer.from_pretrained(micro_model_dir).decode(tokens[3:4])
    assert tokens[4] not in tokens[:4]
    return {"tokens": [tokens[4]], "text": text, "texts": [text, "never said"], "nothing": []}


def same_samples(told: dict[str, Any], expected: Any) -> None:
    sequences = expected.sequences
    assert told["tokens"] == [sequence.tokens.tolist() for sequence in sequences]
    expected_logprobs = [sequence.logprobs.tolist() for sequence in sequences]
    assert singles(told["logprobs"]) == expected_logprobs
    assert told["stop_reasons"] == [sequence.stop_reason for sequence in sequences]


def test_sampling(
    sdk: LoopsSdk, door: Any, sampling_reference: dict[str, Any], stops: dict[str, Any]
) -> None:
    reference = sampling_reference
    seen = sdk.run("sampling", stops=stops, own=OWN_PROMPT)
    check_scores(seen, reference)
    greedy = {
        "untrained": "base",
        "by path": "trained",
        "of the run": "trained",
        "newer": "newer",
        "old": "trained",
    }
    for what, name in greedy.items():
        same_samples(one(seen, what), reference[f"{name} greedy"])
    own = one(seen, "own prompt")
    # The sequence begins as the prompt does, and nothing of it is lost.
    assert own["tokens"][0][: len(OWN_PROMPT)] == OWN_PROMPT
    same_samples(own, reference["own greedy"])
    assert own["prompt_logprobs"] == [None]
    check_stops(seen, reference, stops)
    assert one(seen, "many")["tokens"] == reference["many"]
    check_kind(seen, door)
    for name, words in (("too long", "prompt"), ("structured", "structured_outputs")):
        told = one(seen, name)
        assert (told["status"], told["type"]) == (422, "HTTPStatusError"), told
        assert words in told["message"]
    assert one(seen, "no such path")["status"] == 400


def check_scores(seen: Seen, reference: dict[str, Any]) -> None:
    for name in ("trained", "base"):
        expected = floats(reference[f"{name} scores"].prompt_logprobs)
        told = one(seen, f"{name} scores")["logprobs"]
        assert told == expected
        told, samples = one(seen, f"{name} samples"), reference[f"{name} samples"]
        same_samples(told, samples)
        assert told["prompt_logprobs"] == floats(samples.prompt_logprobs)
        assert all(text for text in told["texts"])
        assert told["topk"][0] is None
        for place, (row, likeliest) in enumerate(
            zip(told["topk"][1:], samples.topk_prompt_logprobs.tokens[1:], strict=True), 1
        ):
            # The token itself comes after the likeliest, unless it is one of them.
            assert [token for token, _ in row[:4]] == likeliest.tolist()
            assert {token for token, _ in row} >= {PROMPT[place]}
            assert len(row) in (4, 5)


def check_stops(seen: Seen, reference: dict[str, Any], stops: dict[str, Any]) -> None:
    tokens = reference["greedy"].tolist()
    for name in stops:
        told = one(seen, f"stop {name}")
        (drawn,) = told["tokens"]
        if name == "nothing":
            assert drawn == tokens
        else:
            assert drawn == tokens[: len(drawn)]
            assert len(drawn) <= 5
            assert told["stop_reasons"] == ["stop"]


def check_kind(seen: Seen, door: Any) -> None:
    if door.capacity == "dedicated":
        assert one(seen, "pinned")["path"] is None
        versions = {"untrained": 0, "trained samples": 1, "newer": 2, "by path": None}
        assert {what: one(seen, what)["version"] for what in versions} == versions
        assert one(seen, "discovered")["base"] == door.base_model
        assert one(seen, "discovered")["adapter"].endswith("/sampler_weights/policy")
        return
    pinned = one(seen, "pinned")
    assert pinned["path"].startswith(f"bt://loops:{pinned['run_id']}/sampler_weights/policy-")
    assert one(seen, "newer")["version"] is None
    assert one(seen, "given up")["type"] == "SampleTimeoutError"
    cancels = [e for e in door.process.events() if str(e.get("method")).endswith("/cancel")]
    assert [event["code"] for event in cancels] == [200]
