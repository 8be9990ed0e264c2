from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tinkergate.dialects.loops.read_completions import Echo, response_from_json
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.errors import GatewayError
from tinkergate.tensors import floats_from_bytes, tokens_from_bytes
from tinkergate.v1 import SampleRequest, SampleResponse, StopReason

PROMPT = [5]


def choice(
    tokens: list[Any], logprobs: list[Any] | None = None, reason: Any = "stop", **more: Any
) -> dict[str, Any]:
    told = logprobs if logprobs is not None else [-0.5] * len(tokens)
    values = {"tokens": [f"token_id:{t}" for t in tokens], "token_logprobs": told}
    return {"token_ids": tokens, "logprobs": values, "finish_reason": reason, **more}


def read(
    *choices: dict[str, Any],
    prompt: list[int] | None = PROMPT,
    max_tokens: int = 8,
    echo: Echo | None = None,
    request: SampleRequest | None = None,
    **more: Any,
) -> SampleResponse:
    request = request or SampleRequest(num_samples=len(choices))
    tokens = None if prompt is None else np.array(prompt, np.int64)
    fields = Fields({"choices": list(choices), **more})
    return response_from_json(fields, request, tokens, max_tokens, echo or Echo())


def drawn(response: SampleResponse) -> list[list[int]]:
    return [tokens_from_bytes(sequence.tokens).tolist() for sequence in response.sequences]


def test_what_was_drawn_is_read() -> None:
    response = read(choice([7, 8], [-0.5, -0.25], "length"))

    [sequence] = response.sequences
    assert drawn(response) == [[7, 8]]
    assert floats_from_bytes(sequence.logprobs).tolist() == [-0.5, -0.25]
    assert sequence.stop_reason == StopReason.STOP_REASON_LENGTH


def test_a_prompt_that_comes_along_is_cut_off_with_its_logprobs() -> None:
    usage = {"completion_tokens": 2}

    response = read(choice([5, 5, 6], [-9.0, -0.5, -0.25]), usage=usage)

    assert drawn(response) == [[5, 6]]
    assert floats_from_bytes(response.sequences[0].logprobs).tolist() == [-0.5, -0.25]


def test_tokens_that_only_look_like_the_prompt_are_kept() -> None:
    assert drawn(read(choice([5, 5, 6]), usage={"completion_tokens": 3})) == [[5, 5, 6]]


def test_null_for_a_logprob_is_the_prompts() -> None:
    assert drawn(read(choice([5, 5, 6], [None, -0.5, -0.5]))) == [[5, 6]]


def test_more_tokens_than_were_asked_for_have_the_prompt_among_them() -> None:
    assert drawn(read(choice([5, 5, 6]), max_tokens=2)) == [[5, 6]]


def test_one_sequence_tells_for_all() -> None:
    response = read(choice([5, 5, 6]), choice([7, 8]))

    assert drawn(response) == [[5, 5, 6], [7, 8]]


def test_what_was_learnt_of_a_sampler_is_not_forgotten() -> None:
    silent, repeating = Echo(), Echo()
    read(choice([7, 8]), echo=silent)
    read(choice([5, 7], [None, -0.5]), echo=repeating)

    assert drawn(read(choice([5, 5, 6]), echo=silent)) == [[5, 5, 6]]
    assert drawn(read(choice([5, 5, 6]), echo=repeating)) == [[5, 6]]


def test_what_cannot_be_told_is_not_guessed() -> None:
    with pytest.raises(GatewayError, match="nothing tells whether it is a part of them"):
        read(choice([5, 5, 6]))
    with pytest.raises(GatewayError, match="nothing tells"):
        read(choice([5, 5, 6]), usage={"completion_tokens": 17})


def test_the_prompt_as_the_sampler_has_it_goes_before() -> None:
    told = choice([1, 1, 1, 9], prompt_token_ids=[1, 1, 1])

    assert drawn(read(told, prompt=None, usage={"completion_tokens": 1})) == [[9]]


def test_of_a_prompt_with_an_image_that_is_not_told_nothing_is_cut() -> None:
    assert drawn(read(choice([5, 6]), prompt=None)) == [[5, 6]]


def test_token_ids_may_stand_among_the_logprobs_alone() -> None:
    told = choice([7, 8])
    del told["token_ids"]
    told["logprobs"]["tokens"] = ["token_id:7", 8]

    assert drawn(read(told)) == [[7, 8]]


def test_an_empty_sequence_is_one() -> None:
    assert drawn(read(choice([]))) == [[]]


def test_without_logprobs_there_are_none() -> None:
    told = choice([7])
    del told["logprobs"]

    assert not read(told).sequences[0].HasField("logprobs")


def test_sequences_are_in_the_order_of_their_indices() -> None:
    assert drawn(read(choice([7], index=1), choice([8], index=0))) == [[8], [7]]


@pytest.mark.parametrize("reason", ["stop", "length", None])
def test_ends_of_sequences(reason: str | None) -> None:
    wanted = StopReason.STOP_REASON_STOP if reason == "stop" else StopReason.STOP_REASON_LENGTH

    assert read(choice([7], reason=reason)).sequences[0].stop_reason == wanted


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (choice([7], reason="abort"), "choices[0].finish_reason: is 'abort'; must be"),
        (choice([7, 8], [None, -0.5]), "choices[0].logprobs.token_logprobs: has null for a token"),
        (choice([7, 8], [-0.5]), "choices[0].logprobs.token_logprobs: has 1; there are 2"),
        (choice([-1]), "choices[0].token_ids[0]: is -1; must be a token id"),
        (choice([2**31]), "choices[0].token_ids[0]: is 2147483648; must be a token id"),
        ({"finish_reason": "stop"}, "choices[0].token_ids: is not given, nor are logprobs"),
        (
            {"finish_reason": "stop", "logprobs": {"tokens": [" hi"], "token_logprobs": [-1.0]}},
            "choices[0].logprobs.tokens: has ' hi' at [0]",
        ),
    ],
)
def test_answers_that_make_no_sense_are_told(told: dict[str, Any], words: str) -> None:
    with pytest.raises(GatewayError) as caught:
        read(told, prompt=[1, 2])

    assert str(caught.value).startswith(words)


def test_there_are_as_many_sequences_as_were_asked_for() -> None:
    with pytest.raises(GatewayError, match="has 1; 2 were asked for"):
        read(choice([7]), request=SampleRequest(num_samples=2))


def _row(**logprobs: float) -> dict[str, Any]:
    return {
        name.removeprefix("t"): {"logprob": value, "decoded_token": "x", "rank": 1}
        for name, value in logprobs.items()
    }


def test_prompt_logprobs_are_those_of_its_own_tokens() -> None:
    rows = [None, _row(t9=-0.1, t2=-3.0), _row(t3=-0.7)]
    request = SampleRequest(prompt_logprobs=True)

    response = read(choice([7], prompt_logprobs=rows), prompt=[1, 2, 3], request=request)

    first, *rest = floats_from_bytes(response.prompt_logprobs).tolist()
    assert math.isnan(first)
    assert rest == pytest.approx([-3.0, -0.7])
    assert not response.HasField("topk_prompt_logprobs")


def test_the_likeliest_are_sorted_and_cut() -> None:
    rows = [None, _row(t2=-3.0, t9=-0.5, t4=-0.2, t8=-0.5)]
    request = SampleRequest(topk_prompt_logprobs=3)

    response = read(choice([7], prompt_logprobs=rows), prompt=[1, 2], request=request)

    table = response.topk_prompt_logprobs
    assert (table.k, table.length) == (3, 2)
    assert tokens_from_bytes(table.token_ids).tolist() == [0, 0, 0, 4, 8, 9]
    assert floats_from_bytes(table.logprobs).tolist() == pytest.approx(
        [-99999.0] * 3 + [-0.2, -0.5, -0.5]
    )
    assert not response.HasField("prompt_logprobs")


def test_the_first_choice_that_has_prompt_logprobs_tells_them() -> None:
    rows = [None, _row(t2=-3.0)]
    request = SampleRequest(num_samples=2, prompt_logprobs=True)

    response = read(choice([7]), choice([8], prompt_logprobs=rows), prompt=[1, 2], request=request)

    assert floats_from_bytes(response.prompt_logprobs)[1] == pytest.approx(-3.0)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (None, "prompt_logprobs: is not given"),
        ([None], "prompt_logprobs: is a list of 1; must be a list of 2"),
        ([None, {"9": {"logprob": -1.0}}], "must be an object with the logprob of token 2"),
        ([None, {"2": -1.0}], "must be an object with the logprob of token 2"),
        ([None, [1]], "must be an object with the logprob of token 2"),
    ],
)
def test_prompt_logprobs_that_make_no_sense_are_told(rows: Any, words: str) -> None:
    request = SampleRequest(prompt_logprobs=True)

    with pytest.raises(GatewayError) as caught:
        read(choice([7], prompt_logprobs=rows), prompt=[1, 2], request=request)

    assert words in str(caught.value)
