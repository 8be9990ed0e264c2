"""Which modules of a base model a LoRA adapter may train."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from torch import nn
from transformers.pytorch_utils import Conv1D

from tinkergate.engine.base import BaseModel

_MIXTURES = ("expert", "router")
"""In the names of what makes a feed-forward block a mixture of experts."""


class Part(Enum):
    """A part of the network that can be trained. The value is its name in LoraConfig."""

    ATTENTION = "train_attn"
    MLP = "train_mlp"
    UNEMBEDDING = "train_unembed"


def find_targets(base: BaseModel) -> dict[str, Part]:
    """The projections that can be adapted, by their paths within `base.hf` and in the order of the
    network: in every decoder layer the linear modules of the blocks named after attention and of
    those named after the feed-forward network, and the unembedding. The feed-forward network of a
    model with mixtures of experts is left out. To be called before any adapter is made."""
    head = base.hf.get_output_embeddings()
    targets = _layer_targets(base) | {
        path: Part.UNEMBEDDING for path, module in base.hf.named_modules() if module is head
    }
    order = {path: place for place, (path, _) in enumerate(base.hf.named_modules())}
    return dict(sorted(targets.items(), key=lambda target: order[target[0]]))


def _layer_targets(base: BaseModel) -> dict[str, Part]:
    found: dict[str, Part] = {}
    mixture = False
    for layer_path, layer in _decoder_layers(base):
        for block_name, block in layer.named_children():
            part = _part_of(block_name)
            if part is None:
                continue
            for path, module in block.named_modules(prefix=f"{layer_path}.{block_name}"):
                mixture = mixture or any(word in path for word in _MIXTURES)
                if isinstance(module, nn.Linear | Conv1D):
                    found[path] = part
    return {path: part for path, part in found.items() if not (mixture and part is Part.MLP)}


def _decoder_layers(base: BaseModel) -> list[tuple[str, nn.Module]]:
    """The decoder's layers with their paths within `base.hf`."""
    for path, module in base.hf.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == base.num_layers:
            return [(f"{path}.{index}", layer) for index, layer in enumerate(module)]
    return []


def _part_of(block_name: str) -> Part | None:
    """The part that a direct child of a decoder layer belongs to, by its name."""
    name = block_name.lower()
    if "norm" in name:
        return None
    if "attn" in name or "attention" in name:
        return Part.ATTENTION
    if "mlp" in name or "feed_forward" in name or "ffn" in name or name in ("fc1", "fc2"):
        return Part.MLP
    return None


def short_names(base: BaseModel, paths: Iterable[str]) -> list[str]:
    """The paths as PEFT's `target_modules`: their last components where those mean the same
    modules, as other programs expect, else the paths themselves."""
    wanted = sorted(paths)
    names = {path.rpartition(".")[2] for path in wanted}
    meant = sorted(path for path in _linear_paths(base) if path.rpartition(".")[2] in names)
    return sorted(names) if meant == wanted else wanted


def _linear_paths(base: BaseModel) -> list[str]:
    """Every linear module, by the path that it has without PEFT's wrapping."""
    return [
        path.removesuffix(".base_layer")
        for path, module in base.hf.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and ".lora_" not in path
    ]
