"""Tinker's SDKs sample and score: the tokens and numbers that the gRPC client gets."""

from __future__ import annotations

from typing import Any

import interop_reference
import pytest
from interop_examples import PROMPT
from interop_sdk import NEWEST, Sdk, of, one
from wire_tap import WireTap

SAMPLE_FIELDS = (
    "tokens",
    "logprobs",
    "stop_reasons",
    "prompt_logprobs",
    "topk_prompt_logprobs",
)
LATER = {
    "topk_sample_logprobs",
    "target_prompt_logprobs",
    "prompt_alt_tokens_k",
    "prompt_logprobs_last_n",
}
Reference = dict[str, interop_reference.Seen]


def check(seen: Any, reference: Reference, newest: bool) -> None:
    scores = {line["sampler"]: line["logprobs"] for line in of(seen, "scores")}
    samples = {line["sampler"]: line for line in of(seen, "samples")}
    assert set(scores) == set(samples) == {"named", "through", "ephemeral", "base"}
    for sampler, source in [
        ("named", "trained"),
        ("through", "trained"),
        ("ephemeral", "trained"),
        ("base", "base"),
    ]:
        assert scores[sampler] == one(reference[source], "scores")["logprobs"], sampler
        expected = one(reference[source], "samples")
        for field in SAMPLE_FIELDS:
            assert samples[sampler][field] == expected[field], (sampler, field)
    assert scores["named"] != scores["base"]
    assert len(scores["named"]) == len(PROMPT)
    assert scores["named"][0] is None
    assert samples["named"]["tokens"][0] != samples["named"]["tokens"][1], (
        "one seed, several samples"
    )
    assert len(samples["named"]["topk_prompt_logprobs"][1]) == 4
    assert one(seen, "other process")["logprobs"] == scores["named"]

    greedy = one(seen, "greedy")
    for what in ("stopped", "stopped by text"):
        stopped = one(seen, what)
        assert stopped["stop_reasons"] == ["stop"], what
        assert stopped["tokens"][0] == greedy["tokens"][0][: len(stopped["tokens"][0])]
        assert len(stopped["tokens"][0]) <= 3
    many = one(seen, "many")["tokens"]
    assert len({str(pair) for pair in many}) == len(many) == 64

    assert len(of(seen, "since 0.38")) == newest
    for told in of(seen, "since 0.38"):
        (expected,) = reference["since 0.38"]
        assert told["sequence_ids"] == 2
        for field in expected:
            assert told[field] == expected[field], field
        last = one(seen, "last scores")["logprobs"]
        assert last[-3:] == scores["named"][-3:]
        assert last[:-3] == [None] * (len(PROMPT) - 3)


def test_sampling_and_scoring(
    request: pytest.FixtureRequest, sdk: Sdk, sampling_reference: Reference
) -> None:
    is_mint = "mint" in request.node.callspec.params.values()
    seen = sdk.run("sampling", is_mint=is_mint)
    named = one(seen, "named")
    assert named["path"] == f"tinker://{named['model_id']}/sampler_weights/named"
    assert one(seen, "base model")["name"] == sdk.base_model
    check(seen, sampling_reference, sdk.name == NEWEST and not is_mint)
    # What MinT does not have is refused by its name, and by the gateway's name for MinT.
    refused = {line["field"]: line["failure"] for line in of(seen, "refused")}
    assert set(refused) == (LATER if sdk.name == NEWEST and is_mint else set())
    for field, failure in refused.items():
        assert field in failure["message"], failure
        assert "mint" in failure["message"], failure


@pytest.mark.parametrize("tinker", [NEWEST], indirect=True)
@pytest.mark.parametrize("queue", [True, False])
def test_with_and_without_the_completion_queue(
    queue: bool, direct_sdk: Sdk, sampling_reference: Reference
) -> None:
    """retrieve_futures in place of one poll a sample, and clones that are given their number, are
    what the door asks for; without it is each sample on its own."""
    flags = {"sample_use_retrieve_futures": queue, "sample_join_sampling_session": queue}
    with WireTap(direct_sdk.url.removeprefix("http://"), flags=flags) as tap:
        seen = direct_sdk.at(tap.url).run("sampling")
    check(seen, sampling_reference, True)
    assert bool(tap.of("retrieve_futures")) == queue
    assert [post.status for post in tap.of("join_sampling_session")] == [200] * queue


@pytest.mark.parametrize("tinker", [NEWEST], indirect=True)
def test_a_sample_that_is_cancelled(direct_sdk: Sdk) -> None:
    upstream = direct_sdk.url.removeprefix("http://")
    with WireTap(upstream, dynamic_flags={"sample_cancel_enabled": True}) as tap:
        seen = direct_sdk.at(tap.url).run("cancelling")
    assert [post.status // 100 for post in tap.of("cancel_future")] == [2]
    told = one(seen, "cancelled")
    assert told["cancelled"]
    assert told["after"] == told["before"]
