"""The ids of this dialect, each of which says what it stands for: they need no table, and mean the
same after a restart.

A run is a model of the gateway, and is called by that model's id. A trainer can be reset, which
gives the run a new model: the models of run `s:train:3` are `s:train:3`, `s:train:1000003` and so
on.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from typing import NamedTuple

from tinkergate.core.ids import model_id, parse_path
from tinkergate.dialects.loops.paths import LoopsPath

GENERATION = 1_000_000
"""How far the numbers of a run's models are apart."""

MAX_GENERATIONS = 2_000
"""How often a run can be reset: the numbers of models are int32."""

_MODEL = re.compile(r"([^/\s~]+):train:(\d{1,10})")
_OPERATION = re.compile(rf"models/({_MODEL.pattern})/operations/[^/]+")
_CANONICAL = re.compile(r"tinker://([^/\s~]+:train:\d{1,10})/(?=(?:sampler_)?weights/)")
_PAIRED = ":sampler"


class Place(NamedTuple):
    """Which model of which run."""

    session_id: str
    number: int
    """Of the run, in its session."""
    generation: int
    """How often the run was reset before."""

    @property
    def run_id(self) -> str:
        """The run."""
        return model_id(self.session_id, self.number)

    @property
    def model_id(self) -> str:
        """The model."""
        return model_id(self.session_id, self.number + self.generation * GENERATION)


def place_of(wanted: str) -> Place | None:
    """The place of a model by its id; None for what is none."""
    match = _MODEL.fullmatch(wanted)
    if match is None:
        return None
    generation, number = divmod(int(match[2]), GENERATION)
    return Place(match[1], number, generation)


def run_of(model: str) -> str:
    """The run of a model; of an id of another form, the id itself."""
    place = place_of(model)
    return model if place is None else place.run_id


def run_of_operation(name: str) -> str | None:
    """The run of an operation by its name; None for what is none."""
    match = _OPERATION.fullmatch(name)
    return None if match is None else run_of(match[1])


def in_own_words(message: str) -> str:
    """A message of the gateway with the paths of checkpoints as this dialect tells them."""
    return _CANONICAL.sub(lambda match: f"bt://loops:{run_of(match[1])}/", message)


def checkpoint_id(canonical: str) -> str:
    """The id of a checkpoint, which stands in URLs as it is."""
    path = parse_path(canonical)
    assert path is not None
    return "~".join(path)


def checkpoint_of(wanted: str) -> str | None:
    """The canonical path of a checkpoint by its id; None for what is none."""
    path = parse_path("tinker://" + wanted.replace("~", "/"))
    return None if path is None else str(path)


class SamplerKey(NamedTuple):
    """What a sampler's id says."""

    sampler_id: str
    run_id: str = ""
    """The run that it is paired with."""
    base_model: str = ""
    checkpoint: str = ""
    """The path of a checkpoint, as Loops tells it."""


def paired_sampler(run_id: str) -> str:
    """The id of a run's own sampler."""
    return run_id + _PAIRED


def new_sampler(*, base_model: str = "", checkpoint: LoopsPath | None = None) -> str:
    """The id of a new sampler of a base model or of a checkpoint."""
    kind, source = ("b", base_model) if checkpoint is None else ("c", str(checkpoint))
    packed = base64.urlsafe_b64encode(source.encode()).decode().rstrip("=")
    return f"{kind}.{packed}.{secrets.token_hex(4)}"


def sampler_key(wanted: str) -> SamplerKey | None:
    """What a sampler's id says; None for what is none."""
    if wanted.endswith(_PAIRED):
        run_id = wanted.removesuffix(_PAIRED)
        return SamplerKey(wanted, run_id) if place_of(run_id) is not None else None
    kind, _, rest = wanted.partition(".")
    packed, _, _ = rest.partition(".")
    try:
        source = base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4)).decode()
    except (binascii.Error, ValueError):
        return None
    match kind:
        case "b":
            return SamplerKey(wanted, base_model=source)
        case "c":
            return SamplerKey(wanted, checkpoint=source)
    return None
