"""Names of things: how they are made and taken apart. They appear unescaped in paths of URLs, so
they hold letters, digits, ':', '-', '_' and '.' only."""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple

WEIGHTS = "weights"
SAMPLER_WEIGHTS = "sampler_weights"
EXTERNAL_WEIGHTS = "external_weights"

NAME_PATTERN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
NAME_RULE = "letters, digits, '.', '_' and '-', not beginning with '.', at most 128"
_PATH_PATTERN = re.compile(
    rf"tinker://([A-Za-z0-9_:.-]{{1,128}})/({WEIGHTS}|{SAMPLER_WEIGHTS}|{EXTERNAL_WEIGHTS})/"
    rf"({NAME_PATTERN.pattern})"
)
PATH_SCHEME = "tinker://"
"""What every canonical path of a checkpoint, and no name of a base model, begins with."""
PATH_RULE = "tinker://{model_id}/{weights | sampler_weights | external_weights}/{name}"


def new_session_id() -> str:
    """64 random bits: unique for ever for all purposes."""
    return f"s-{secrets.token_hex(8)}"


def new_import_id() -> str:
    """The model id that an imported adapter is filed under: no session and no model has it."""
    return f"i-{secrets.token_hex(8)}:train:0"


def new_copy_id() -> str:
    """The model id of a copied checkpoint that no session is to own."""
    return f"c-{secrets.token_hex(8)}:train:0"


def new_sum_id() -> str:
    """The model id of a checkpoint that is the weighted sum of others."""
    return f"w-{secrets.token_hex(8)}:train:0"


def model_id(session_id: str, number: int) -> str:
    """The id of a session's model."""
    return f"{session_id}:train:{number}"


def sampler_id(session_id: str, number: int) -> str:
    """The id of a session's sampler."""
    return f"{session_id}:sample:{number}"


def action_session_id(session_id: str, number: int) -> str:
    """The id of an action session; numbers are never used twice."""
    return f"{session_id}:action:{number}"


def session_of(owned_id: str) -> str:
    """The session that owns a model or sampler, by the id of that."""
    return owned_id.rsplit(":", 2)[0]


def operation_name(model: str, part: str) -> str:
    """The name of a model's operation; `part` is unique within the model."""
    return f"models/{model}/operations/{part}"


class CheckpointPath(NamedTuple):
    """The canonical path of a checkpoint, taken apart."""

    model_id: str
    kind: str
    """`WEIGHTS`, `SAMPLER_WEIGHTS` or `EXTERNAL_WEIGHTS`."""
    name: str

    def __str__(self) -> str:
        return f"tinker://{self.model_id}/{self.kind}/{self.name}"

    @property
    def checkpoint_id(self) -> str:
        """The part after the model id."""
        return f"{self.kind}/{self.name}"


def parse_path(path: str) -> CheckpointPath | None:
    """A canonical path taken apart, or None if it is none."""
    match = _PATH_PATTERN.fullmatch(path)
    return None if match is None else CheckpointPath(*match.groups())
