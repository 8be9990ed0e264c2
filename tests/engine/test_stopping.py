"""When a sequence that is being drawn ends."""

from pathlib import Path

import pytest

from tinkergate.engine.base import BaseModel
from tinkergate.engine.sampling import Stops
from tinkergate.engine.stopping import StopWatch


@pytest.fixture(scope="module")
def base(micro_model_dir: Path) -> BaseModel:
    return BaseModel.load(micro_model_dir)


def ends_at(base: BaseModel, tokens: list[int], stops: Stops) -> int | None:
    """The place of the token that ends the sequence."""
    watch = StopWatch(stops, base)
    return next((place for place, token in enumerate(tokens) if watch.ends(token)), None)


def first_whole(base: BaseModel, tokens: list[int], string: str) -> int | None:
    """By decoding everything again at each token."""
    for place in range(len(tokens)):
        if string in base.tokenizer.decode(tokens[: place + 1]):
            return place
    return None


@pytest.mark.parametrize(
    "string",
    ["over", " jumps over", "\n\nThe", "zy d", "ß", "日本", "🦊", "x🦊 fox", "<|im_end|>", "ends."],
)
def test_a_string_is_found_where_it_first_is_whole(base: BaseModel, string: str) -> None:
    text = "The quick x🦊 fox jumps over\n\nThe lazy dog. Größe 日本語<|im_end|> and it ends."
    tokens = base.tokenizer.encode(text)
    expected = first_whole(base, tokens, string)
    assert expected is not None
    assert ends_at(base, tokens, Stops(eos=False, strings=(string,))) == expected
    assert ends_at(base, tokens, Stops(eos=False, strings=("none of it", string))) == expected


def test_a_string_before_half_a_character_is_found_at_once(base: BaseModel) -> None:
    """Bytes that are no whole character yet must not hide the text before them."""
    watch = StopWatch(Stops(eos=False, strings=("stop",)), base)
    fox = base.tokenizer.encode("🦊")
    assert len(fox) > 1
    ends = [watch.ends(token) for token in [fox[0], *base.tokenizer.encode("stop"), fox[0]]]
    assert ends.index(True) == len(ends) - 2


def test_bytes_that_never_become_a_character_do_not_pile_up(base: BaseModel) -> None:
    half = base.tokenizer.encode("🦊")[0]
    tokens = [half] * 200 + base.tokenizer.encode("the end")
    watch = StopWatch(Stops(eos=False, strings=("the end",)), base)
    ends = [watch.ends(token) for token in tokens]
    assert ends.index(True) == len(tokens) - 1
    assert watch._text is not None
    assert len(watch._text._recent) < 50


def test_tokens_that_end(base: BaseModel) -> None:
    [eos] = base.eos_token_ids
    tokens = [5, 6, 7, eos, 8]
    assert ends_at(base, tokens, Stops()) == 3
    assert ends_at(base, tokens, Stops(eos=False)) is None
    assert ends_at(base, tokens, Stops(tokens=frozenset([6]))) == 1
    assert ends_at(base, tokens, Stops(eos=False, tokens=frozenset([8]))) == 4
    assert ends_at(base, tokens, Stops(strings=("not there",))) == 3
