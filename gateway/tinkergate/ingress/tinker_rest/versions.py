"""Which version of Tinker's SDK a client is, for what older ones cannot read."""

from __future__ import annotations

import re

from starlette.requests import Request

from tinkergate.v1 import CheckpointType

_VERSION_HEADER = "x-stainless-package-version"

_EXTERNAL_SINCE = (0, 38)
"""Clients before this version know two types of checkpoints, and fail on a list with a third."""


def version(text: str) -> tuple[int, ...]:
    """The numbers that a version begins with; none for what is no version."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def unknown_types(request: Request) -> tuple[int, ...]:
    """The types of checkpoints that the client cannot read, by the version that it says it is.
    Who says none is no SDK, and is told all."""
    said = version(request.headers.get(_VERSION_HEADER, ""))
    if said and said < _EXTERNAL_SINCE:
        return (CheckpointType.CHECKPOINT_TYPE_EXTERNAL,)
    return ()
