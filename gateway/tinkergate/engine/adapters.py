"""LoRA adapters that share one base model.

PEFT does the layers. Every module that can be adapted is wrapped once, when an `Adapters` is made,
and all wrapped layers look at one shared list of active adapters, so switching costs nothing. Of
PEFT's bookkeeping nothing else is used: which adapters exist, and which of them train, is kept
here.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from torch.nn import Parameter

from tinkergate.engine.base import BaseModel
from tinkergate.engine.peft_format import (
    adapted_paths,
    mismatch,
    rank_and_alpha,
    read_folder,
    weight_key,
)
from tinkergate.engine.targets import Part, find_targets, short_names
from tinkergate.errors import unsupported


@dataclass(frozen=True)
class LoraSpec:
    """A LoRA adapter as it is asked for."""

    rank: int
    alpha: float
    """The product of the factors is scaled by alpha / rank."""
    seed: int = 0
    """Decides the initial weights, all by itself. From -2**63 to 2**64 - 1."""
    train_mlp: bool = True
    train_attn: bool = True
    train_unembed: bool = True

    @property
    def parts(self) -> frozenset[Part]:
        """The parts of the network that are adapted."""
        return frozenset(part for part in Part if getattr(self, part.value))


@dataclass(frozen=True)
class _Adapter:
    peft_name: str
    spec: LoraSpec
    paths: list[str]
    parameters: list[tuple[str, Parameter]]
    trainable: bool


class Adapters:
    """The adapters of one base model, by name. For one thread."""

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._targets = find_targets(base)
        self._adapters: dict[str, _Adapter] = {}
        # PEFT forbids the dots of our names, and a name may come again.
        self._peft_names = (f"a{number}" for number in itertools.count())
        self._active: list[str] = []
        self._layers = self._wrap()

    def create(self, name: str, spec: LoraSpec) -> None:
        """Make a trainable adapter. Its A factors are uniform in +-1 / sqrt(in), drawn in the order
        of the network from a generator of its own, so they follow from the seed and the parts; its
        B factors are zero. Raises GatewayError for a part that the base model does not have."""
        if missing := spec.parts - set(self._targets.values()):
            names = ", ".join(sorted(part.value for part in missing))
            raise unsupported(f"{names} on {self._base.arch}", "local")
        paths = [path for path, part in self._targets.items() if part in spec.parts]
        generator = torch.Generator().manual_seed(spec.seed)
        weights = {}
        for path in paths:
            layer = self._layers[path]
            bound = 1 / math.sqrt(layer.in_features)
            a = torch.empty(spec.rank, layer.in_features)
            weights[weight_key(path, "A")] = a.uniform_(-bound, bound, generator=generator)
            weights[weight_key(path, "B")] = torch.zeros(layer.out_features, spec.rank)
        self._add(name, spec, paths, weights, trainable=True)

    def snapshot(self, source: str, name: str) -> None:
        """Make a frozen adapter with the weights that `source` has now."""
        original = self._get(source)
        weights = dict(original.parameters)
        self._add(name, original.spec, original.paths, weights, trainable=False)

    def load(self, name: str, folder: Path, *, trainable: bool) -> None:
        """Make an adapter from a folder in PEFT's format; see `add`."""
        config, weights = read_folder(folder)
        self.add(name, config, weights, trainable=trainable)

    def add(
        self,
        name: str,
        config: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        *,
        trainable: bool,
    ) -> None:
        """Make an adapter from a PEFT configuration and its weights, by PEFT's keys
        (`base_model.model.<module>.lora_A.weight`, (rank, in), and `lora_B`, (out, rank)). It may
        adapt any of the modules that this engine adapts. Raises GatewayError, before anything is
        made, for an adapter that is not plain LoRA or does not fit the base model."""
        rank, alpha = rank_and_alpha(config)
        wanted = adapted_paths(weights)
        if odd := sorted(wanted - self._targets.keys()):
            raise mismatch(f"the adapter has weights for {odd[0]!r}, which is not trained here")
        paths = [path for path in self._targets if path in wanted]
        for path in paths:
            layer = self._layers[path]
            _check_weight(weights, weight_key(path, "A"), (rank, layer.in_features))
            _check_weight(weights, weight_key(path, "B"), (layer.out_features, rank))
        parts = {part.value: part in {self._targets[path] for path in paths} for part in Part}
        self._add(name, LoraSpec(rank, alpha, **parts), paths, weights, trainable=trainable)

    def delete(self, name: str) -> None:
        """Free an adapter, which must not be active. Unknown names are no error."""
        if name not in self._adapters:
            return
        adapter = self._adapters[name]
        if adapter.peft_name in self._active:
            raise ValueError(f"the adapter {name!r} is active")
        del self._adapters[name]
        self._drop_factors(adapter.peft_name, adapter.paths)

    def __contains__(self, name: object) -> bool:
        return name in self._adapters

    def spec(self, name: str) -> LoraSpec:
        """What the adapter was made as. The seed of one that was loaded is 0."""
        return self._get(name).spec

    def parameters(self, name: str) -> list[tuple[str, Parameter]]:
        """The adapter's weights with their keys in a PEFT file, float32, in the order of the
        network: A (rank, in), then B (out, rank) of each module."""
        return self._get(name).parameters

    def peft_config(self, name: str) -> dict[str, Any]:
        """The adapter's `adapter_config.json`, by which plain PEFT gives the same numbers."""
        adapter = self._get(name)
        targets = short_names(self._base, adapter.paths)
        config: dict[str, Any] = _lora_config(adapter.spec, targets).to_dict()
        return config | {
            "base_model_name_or_path": self._base.name,
            "inference_mode": True,
            "peft_type": config["peft_type"].value,
            "target_modules": sorted(config["target_modules"]),
        }

    @contextmanager
    def active(self, name: str | None) -> Iterator[None]:
        """Run the base model under an adapter, or bare (None). To be left before other work runs
        on the base model, so never held across a `yield`."""
        outer = self._active[:]
        self._active[:] = [] if name is None else [self._get(name).peft_name]
        try:
            yield
        finally:
            self._active[:] = outer

    def _get(self, name: str) -> _Adapter:
        try:
            return self._adapters[name]
        except KeyError:
            raise ValueError(f"there is no adapter {name!r}") from None

    def _wrap(self) -> dict[str, Any]:
        """Put a PEFT layer without any adapter around every target."""
        hf = self._base.hf
        config = _lora_config(LoraSpec(rank=1, alpha=1), self._targets)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # That only one of two tied matrices is adapted is meant, and which way round a layer
            # stores its matrix only matters for merging.
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings|fan_in_fan_out")
            inject_adapter_in_model(config, hf, "placeholder")
        layers = {path: hf.get_submodule(path) for path in self._targets}
        for layer in layers.values():
            layer._active_adapter = self._active
            layer.delete_adapter("placeholder")
        return layers

    def _add(
        self,
        name: str,
        spec: LoraSpec,
        paths: list[str],
        weights: Mapping[str, Tensor],
        *,
        trainable: bool,
    ) -> None:
        if name in self._adapters:
            raise ValueError(f"there is an adapter {name!r} already")
        peft_name = next(self._peft_names)
        try:
            parameters = self._add_factors(peft_name, spec, paths, weights)
        except BaseException:
            self._drop_factors(peft_name, paths)
            raise
        self._adapters[name] = _Adapter(peft_name, spec, paths, parameters, trainable)
        # PEFT freezes and thaws the adapters of a layer by which of them are active.
        for adapter in self._adapters.values():
            for _, parameter in adapter.parameters:
                parameter.requires_grad_(adapter.trainable)

    def _add_factors(
        self, peft_name: str, spec: LoraSpec, paths: list[str], weights: Mapping[str, Tensor]
    ) -> list[tuple[str, Parameter]]:
        config = _lora_config(spec, paths)
        parameters: list[tuple[str, Parameter]] = []
        for path in paths:
            layer = self._layers[path]
            # On the meta device nothing is filled with random numbers that nobody wants.
            with torch.device("meta"):
                layer.update_layer(peft_name, spec.rank, config.lora_alpha, config)
            for factor, linear in (("A", layer.lora_A), ("B", layer.lora_B)):
                key = weight_key(path, factor)
                weight = weights[key].detach().to(self._base.device, torch.float32, copy=True)
                linear[peft_name].weight = Parameter(weight.contiguous())
                parameters.append((key, linear[peft_name].weight))
        return parameters

    def _drop_factors(self, peft_name: str, paths: list[str]) -> None:
        for path in paths:
            self._layers[path].delete_adapter(peft_name)


def _lora_config(spec: LoraSpec, target_modules: Iterable[str]) -> LoraConfig:
    return LoraConfig(
        r=spec.rank,
        lora_alpha=int(spec.alpha) if float(spec.alpha).is_integer() else spec.alpha,
        target_modules=list(target_modules),
        task_type="CAUSAL_LM",
    )


def _check_weight(weights: Mapping[str, Tensor], key: str, shape: tuple[int, int]) -> None:
    weight = weights[key]
    if tuple(weight.shape) != shape:
        raise mismatch(f"{key} has shape {list(weight.shape)}; must be {list(shape)}")
    if not torch.isfinite(weight).all():
        raise mismatch(f"{key} has numbers that are not finite")
