"""LoRA adapters in PEFT's file format, and which of them the engine takes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tinkergate.errors import ErrorReason, GatewayError, Kind

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_EXTENSIONS = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)
"""Settings by which an adapter computes something other than plain LoRA. Empty means off."""

_HARMLESS_INITS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Initial weights that leave the base model's weights alone."""


def mismatch(message: str) -> GatewayError:
    """Weights that do not fit what they are to be loaded into."""
    return GatewayError(
        Kind.PRECONDITION, ErrorReason.ERROR_REASON_CHECKPOINT_MISMATCH, message, backend="local"
    )


def weight_key(path: str, factor: str) -> str:
    """The key, in a PEFT file, of the factor "A" or "B" of the module at `path`."""
    return f"{_PREFIX}{path}.lora_{factor}.weight"


def adapted_paths(weights: Mapping[str, Tensor]) -> set[str]:
    """The modules that the weights of a PEFT file adapt. Raises GatewayError for a key that is no
    factor of plain LoRA, and for a factor without the other."""
    paths = {key.removeprefix(_PREFIX).rpartition(".lora_")[0] for key in weights}
    expected = {weight_key(path, factor) for path in paths for factor in ("A", "B")}
    if odd := sorted(expected.symmetric_difference(weights)):
        raise mismatch(f"the weights are not those of plain LoRA: {odd[0]!r} is missing or odd")
    return paths


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the weights of an adapter's folder. Raises GatewayError."""
    config = _read(folder / CONFIG_FILE, lambda file: json.loads(file.read_text(encoding="utf-8")))
    weights = _read(folder / WEIGHTS_FILE, load_file)
    if not isinstance(config, dict):
        raise mismatch(f"{CONFIG_FILE} holds {type(config).__name__}; must be an object")
    return config, weights


def _read(file: Path, parse: Callable[[Path], Any]) -> Any:
    # The folder may be one of ours that means nothing to the caller: the file's name is enough.
    try:
        return parse(file)
    except FileNotFoundError as error:
        raise mismatch(f"{file.name} is missing: this is no adapter as PEFT saves it") from error
    except OSError as error:
        raise mismatch(f"{file.name} cannot be read: {error.strerror}") from error
    except (ValueError, SafetensorError) as error:
        raise mismatch(f"{file.name} is not as PEFT writes it: {error}") from error


def rank_and_alpha(config: Mapping[str, Any]) -> tuple[int, float]:
    """Rank, and the alpha of a scale alpha / rank, of a plain LoRA adapter. Raises GatewayError
    naming the setting that makes it something else."""
    if config.get("peft_type") != "LORA":
        raise mismatch(f"peft_type is {config.get('peft_type')!r}; must be 'LORA'")
    for setting in _EXTENSIONS:
        if config.get(setting):
            raise mismatch(f"{setting} is {config[setting]!r}; only plain LoRA is supported")
    if config.get("bias", "none") != "none":
        raise mismatch(f"bias is {config['bias']!r}; must be 'none'")
    if config.get("init_lora_weights") not in _HARMLESS_INITS:
        raise mismatch(
            f"init_lora_weights is {config['init_lora_weights']!r}, which changes the base model"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank <= 0:
        raise mismatch(f"r is {rank!r}; must be a positive integer")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise mismatch(f"lora_alpha is {alpha!r}; must be a number")
    # Rank-stabilised LoRA divides by the root of the rank.
    return rank, alpha * math.sqrt(rank) if config.get("use_rslora") else float(alpha)
