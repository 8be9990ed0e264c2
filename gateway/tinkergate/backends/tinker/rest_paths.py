"""Paths of checkpoints at the service, taken apart for its REST routes (wire section 15.1)."""

from __future__ import annotations

import re
from typing import NamedTuple

_PATH = re.compile(r"(?:tinker|mint)://([\w.:-]+)/(\w+/[\w.-]+)", re.ASCII)


class RestPath(NamedTuple):
    """A path of the service's, taken apart."""

    training_run_id: str
    checkpoint_id: str
    """Such as `weights/step-3`."""

    @property
    def route(self) -> str:
        """The route of the checkpoint."""
        return f"training_runs/{self.training_run_id}/checkpoints/{self.checkpoint_id}"


def rest_path(upstream_path: str) -> RestPath | None:
    """A path of the service's taken apart; None if it has no such form."""
    match = _PATH.fullmatch(upstream_path)
    return None if match is None else RestPath(*match.groups())
