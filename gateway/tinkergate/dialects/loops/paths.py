"""Paths of checkpoints as Loops tells them, and the canonical ones (wire sections 1 and 13.2).

`bt://loops:<run_id>/weights/<name>` has the whole state of training,
`bt://loops:<run_id>/sampler_weights/<name>` the adapter alone. The canonical path has the same
tail after `tinker://<model_id>/`.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Target = Literal["trainer", "sampler"]
"""What a checkpoint was saved for."""

_SCHEME = "bt://loops:"
_KINDS: dict[str, Target] = {"weights": "trainer", "sampler_weights": "sampler"}
_FOLDERS: dict[Target, str] = {target: kind for kind, target in _KINDS.items()}
_TAIL = r"([^/\s]+)/(weights|sampler_weights)/([^/\s]+)"
_LOOPS = re.compile(rf"bt://loops:{_TAIL}/?")
_CANONICAL = re.compile(rf"tinker://{_TAIL}")


class LoopsPath(NamedTuple):
    """A checkpoint's path, taken apart."""

    run_id: str
    """Of a canonical path, the model's id."""
    target: Target
    name: str

    def __str__(self) -> str:
        """As Loops tells it."""
        return f"{_SCHEME}{self.run_id}/{_FOLDERS[self.target]}/{self.name}"

    @property
    def canonical(self) -> str:
        """As the contract and Tinker tell it."""
        return f"tinker://{self.run_id}/{_FOLDERS[self.target]}/{self.name}"


def loops_path(path: str) -> LoopsPath | None:
    """A `bt://` path taken apart; a slash may end it. None for what has another form, the paths of
    captured sequences among it."""
    return _parsed(_LOOPS, path)


def canonical_path(path: str) -> LoopsPath | None:
    """A `tinker://` path taken apart. None for what Loops has no form for, such as external
    weights."""
    return _parsed(_CANONICAL, path)


def _parsed(pattern: re.Pattern[str], path: str) -> LoopsPath | None:
    match = pattern.fullmatch(path)
    return None if match is None else LoopsPath(match[1], _KINDS[match[2]], match[3])
