"""The names that callers use for base models, where the configuration sets others than the
backends' own."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tinkergate.v1 import SupportedModel

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelName:
    """A base model as it is to be known."""

    name: str
    """What callers call it."""
    backend: str
    """The backend that it belongs to: requests that name none go there."""
    upstream_name: str
    """What the backend calls it: a name, or an alias that the backend knows."""
    aliases: tuple[str, ...] = ()
    """What callers may call it too."""
    tokenizer_id: str = ""
    """What to load its tokenizer by; empty leaves that to the backend."""

    @property
    def all_names(self) -> tuple[str, ...]:
        """The name and the aliases."""
        return (self.name, *self.aliases)


class ModelNames:
    """All base models that the configuration names."""

    def __init__(self, names: Sequence[ModelName] = ()) -> None:
        """Raises ValueError if two models have a name in common."""
        self._names = tuple(names)
        self._by_name: dict[str, ModelName] = {}
        self._missed: set[str] = set()
        """Names that were warned of because the backend does not serve them."""
        for each in names:
            for text in each.all_names:
                if self._by_name.setdefault(text, each) is not each:
                    raise ValueError(f"two base models are named {text!r}")

    def find(self, name: str) -> ModelName | None:
        """The model that the configuration gives this name or alias."""
        return self._by_name.get(name)

    def applied(self, backend: str, own: Iterable[SupportedModel]) -> list[SupportedModel]:
        """A backend's models as callers are to see them, in the same order: those that the
        configuration names by their public names, the others as far as their names are not taken
        by the first."""
        ours = [each for each in self._names if each.backend == backend]
        taken = {text for each in ours for text in each.all_names}
        public: list[SupportedModel] = []
        served: set[str] = set()
        for model in own:
            names = [each for each in ours if _is_called(model, each.upstream_name)]
            served.update(each.name for each in names)
            public += [_renamed(model, each, taken) for each in names]
            if not names and model.name not in taken:
                kept = SupportedModel()
                kept.CopyFrom(model)
                _set_aliases(kept, [alias for alias in model.aliases if alias not in taken])
                public.append(kept)
        self._warn_once(backend, [each for each in ours if each.name not in served])
        return public

    def _warn_once(self, backend: str, missing: Sequence[ModelName]) -> None:
        for each in missing:
            if each.name not in self._missed:
                _log.warning(
                    "backend %s does not serve %s, which is to be called %s",
                    backend,
                    each.upstream_name,
                    each.name,
                )
        self._missed |= {each.name for each in missing}


def _is_called(model: SupportedModel, name: str) -> bool:
    return name in (model.name, model.upstream_name) or name in model.aliases


def _renamed(model: SupportedModel, name: ModelName, taken: set[str]) -> SupportedModel:
    public = SupportedModel()
    public.CopyFrom(model)
    public.name = name.name
    own = model.upstream_name or model.name
    public.upstream_name = own if own != name.name else ""
    others = [alias for alias in model.aliases if alias not in taken]
    _set_aliases(public, [*name.aliases, *others])
    public.tokenizer_id = name.tokenizer_id or model.tokenizer_id
    return public


def _set_aliases(model: SupportedModel, aliases: Sequence[str]) -> None:
    del model.aliases[:]
    model.aliases.extend(aliases)
