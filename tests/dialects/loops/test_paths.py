from __future__ import annotations

import pytest

from tinkergate.dialects.loops.paths import LoopsPath, canonical_path, loops_path


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("bt://loops:k4q95w5/weights/step-1", LoopsPath("k4q95w5", "trainer", "step-1")),
        ("bt://loops:k4/sampler_weights/a.b", LoopsPath("k4", "sampler", "a.b")),
        # A run is what stands before the next slash, whatever it is.
        ("bt://loops:s-1:train:0/weights/x", LoopsPath("s-1:train:0", "trainer", "x")),
        ("bt://loops:k4/weights/x/", LoopsPath("k4", "trainer", "x")),
    ],
)
def test_paths_are_taken_apart_and_put_together(text: str, parsed: LoopsPath) -> None:
    assert loops_path(text) == parsed
    assert str(parsed) == text.rstrip("/")
    assert canonical_path(parsed.canonical) == parsed


def test_the_canonical_path_has_the_same_tail() -> None:
    assert LoopsPath("s-1:train:0", "sampler", "x").canonical == (
        "tinker://s-1:train:0/sampler_weights/x"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tinker://k4/weights/x",
        "bt://trainers:k4/weights/x",
        "bt://loops:k4/sequences/obj",
        "bt://loops:/weights/x",
        "bt://loops:k4/weights/",
        "bt://loops:k4/weights/a/b",
        "bt://loops:k4/weights/a b",
        "s3://bucket/weights/x",
    ],
)
def test_other_texts_are_no_paths(text: str) -> None:
    assert loops_path(text) is None


def test_loops_has_no_external_weights() -> None:
    assert canonical_path("tinker://s:train:0/external_weights/x") is None
