"""A base model: the frozen network that all adapters of one name share."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import linear
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from tinkergate.engine.attention import ATTENTION, PackedPlan, Plan, Rule, using
from tinkergate.engine.tile_linear import tile_product
from tinkergate.errors import ErrorReason, GatewayError, Kind, unsupported

_PROBE_LENGTHS = (7, 5)
_PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far logits may be from those of the model's own forward, as a part of the largest logit."""

_VOCABULARY_PIECE = 8192
"""How many tokens' unembeddings are widened to float32 at once."""

_ROPE_OF_THE_ROW = frozenset({"dynamic", "longrope"})
"""Rotary embeddings that depend on the longest sequence of a pass: on a sequence's neighbours."""


class LoraFactors(NamedTuple):
    """The low-rank addition to a weight: scale * B @ A."""

    a: Tensor
    """(rank, in), float32."""
    b: Tensor
    """(out, rank), float32."""
    scale: float


class Unembedding(NamedTuple):
    """The output projection to the vocabulary under the active adapter."""

    weight: Tensor
    """(vocabulary, width), frozen."""
    bias: Tensor | None
    """(vocabulary,), frozen."""
    lora: LoraFactors | None


def float32_logits(hidden: Tensor, unembedding: Unembedding) -> Tensor:
    """The logits of states (N, width), float32 (N, vocabulary)."""
    weight, bias, lora = unembedding
    states = hidden.float()
    logits = _float32_product(states, weight)
    if bias is not None:
        logits = logits + bias
    if lora is not None:
        logits = torch.addmm(logits, states @ lora.a.T, lora.b.T, alpha=lora.scale)
    return logits


def float32_unprojected(slopes: Tensor, weight: Tensor) -> Tensor:
    """slopes @ weight of (N, vocabulary) and (vocabulary, width) in float32: the gradient of states
    from that of their logits. In pieces, as the logits themselves."""
    if weight.dtype == torch.float32:
        return slopes @ weight
    total = slopes.new_zeros(len(slopes), weight.shape[1])
    pieces = zip(
        torch.split(slopes, _VOCABULARY_PIECE, dim=1),
        torch.split(weight, _VOCABULARY_PIECE),
        strict=True,
    )
    for part, piece in pieces:
        total.addmm_(part, piece.float())
    return total


class BaseModel:
    """A causal language model of a Hugging Face folder, frozen and in eval mode."""

    def __init__(self, hf: Any, folder: Path, name: str) -> None:
        text = hf.config.get_text_config()
        self.hf = hf
        self.folder = folder
        self.name = name
        self.arch: str = type(hf).__name__
        self.vocab_size: int = text.vocab_size
        self.max_context = _max_context(text)
        """The most tokens of one sequence."""
        self.eos_token_ids = _eos_token_ids(hf)
        self.num_layers: int = text.num_hidden_layers
        self.hidden_size: int = text.hidden_size
        self.parameter_count = sum(parameter.numel() for parameter in hf.parameters())
        """Parameters of the base model, tied ones counted once."""
        self.device: torch.device = hf.device
        self.dtype: torch.dtype = hf.dtype
        self.decoder = hf.get_decoder()
        """The network up to and with the final norm."""
        self._head: torch.nn.Linear = hf.get_output_embeddings()
        self._logit_scale = _logit_scale(text)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        name: str | None = None,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> BaseModel:
        """Load a folder in the `transformers` format. `name` defaults to the folder's; `device` to
        a GPU if there is one; `dtype` to bfloat16 on a GPU and to float32 elsewhere.

        Raises GatewayError if the folder does not hold a causal language model, or if the model
        has a feature that the engine cannot honour; the message names it. The last check is a
        comparison with the model's own forward pass.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
        transformers_logging.disable_progress_bar()
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            _check_config(config.get_text_config())
            hf, info = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=ATTENTION,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise _no_model(folder, str(error)) from error
        if info["missing_keys"]:
            # `transformers` would go on with random numbers in their place.
            raise _no_model(folder, f"it lacks the weights {min(info['missing_keys'])!r}")
        hf = hf.to(device).eval().requires_grad_(False)
        if not hf._supports_attention_backend:
            raise _unsupported(f"the attention code of {type(hf).__name__}")
        base = cls(hf, folder, name or folder.name)
        base._compare_with_own_forward()
        return base

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's tokenizer. Loaded on first use, which can take seconds."""
        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    def hidden(self, tokens: Tensor, positions: Tensor, plan: Plan) -> Tensor:
        """The states after the final norm under the active adapter, (T, width), in the model's
        dtype. `tokens` and `positions` are int64 (T,): the sequences of the plan end to end, each
        with its own positions. A model that scales its logits has the scale applied here."""
        with using(plan):
            states: Tensor = self.decoder(
                input_ids=tokens.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False
            ).last_hidden_state[0]
        plan.finish()
        return states if self._logit_scale == 1 else states * self._logit_scale

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits of states (N, width) under the active adapter, float32 (N, vocabulary)."""
        return float32_logits(hidden, self.unembedding())

    def unembedding(self) -> Unembedding:
        """The output projection under the active adapter, for kernels that never make logits."""
        return Unembedding(self._head.weight, self._head.bias, self._head_lora())

    def _head_lora(self) -> LoraFactors | None:
        head = self.hf.get_output_embeddings()
        if isinstance(head, LoraLayer):
            for adapter in head.active_adapters:
                if adapter in head.lora_A:
                    a, b = head.lora_A[adapter].weight, head.lora_B[adapter].weight
                    return LoraFactors(a, b, head.scaling[adapter])
        return None

    @torch.no_grad()
    def _compare_with_own_forward(self) -> None:
        """Refuse a model whose numbers we would not reproduce: two sequences in one row must give
        what the model's own code gives for each."""
        generator = torch.Generator().manual_seed(0)
        parts = [torch.randint(self.vocab_size, (n,), generator=generator) for n in _PROBE_LENGTHS]
        parts = [part.to(self.device) for part in parts]
        plan = _Witness(_PROBE_LENGTHS)
        positions = torch.cat([torch.arange(n, device=self.device) for n in _PROBE_LENGTHS])
        ours = self.logits(self.hidden(torch.cat(parts), positions, plan))
        _check_windows(self.hf.config.get_text_config(), plan.rules)

        self.hf.set_attn_implementation("eager")
        theirs = torch.cat([self.hf(part.unsqueeze(0)).logits[0].float() for part in parts])
        self.hf.set_attn_implementation(ATTENTION)

        error = (ours - theirs).abs().max().item()
        limit = _PROBE_TOLERANCE[self.dtype] * theirs.abs().max().item()
        if not error <= limit:
            raise _unsupported(
                f"the architecture {self.arch}: packed sequences do not give the logits of its own "
                f"forward pass (largest difference {error:.3g}, allowed {limit:.3g})"
            )


class _Witness(PackedPlan):
    """A plan that remembers what the model asked of its attention layers."""

    def __init__(self, lengths: tuple[int, ...]) -> None:
        super().__init__(lengths)
        self.rules: list[Rule] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        self.rules.append(rule)
        return super().attend(layer, query, key, value, rule)


def _check_config(config: Any) -> None:
    """Refuse by name what a short comparison would not show."""
    if getattr(config, "is_encoder_decoder", False):
        raise _unsupported("an encoder")
    rope = getattr(config, "rope_parameters", None) or {}
    for setting in (rope, *(part for part in rope.values() if isinstance(part, dict))):
        if setting.get("rope_type") in _ROPE_OF_THE_ROW:
            raise _unsupported(f"rotary embeddings of type {setting['rope_type']!r}")
    if getattr(config, "attention_chunk_size", None):
        raise _unsupported("chunked attention")
    odd = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if odd:
        raise _unsupported(f"layers of type {', '.join(sorted(odd))}")
    if getattr(config, "final_logit_softcapping", None):
        raise _unsupported("a softcap on the logits (final_logit_softcapping)")


def _check_windows(config: Any, rules: list[Rule]) -> None:
    """Every layer that the configuration gives a sliding window must have told us of it."""
    if len(rules) != config.num_hidden_layers:
        raise _unsupported(f"{len(rules)} attention calls in {config.num_hidden_layers} layers")
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    expected = types.count("sliding_attention") if types else len(rules) if window else 0
    if sum(rule.window is not None for rule in rules) != expected:
        raise _unsupported("sliding-window attention that it keeps to itself")


def _logit_scale(config: Any) -> float:
    """The factor between unembedding and logits (Granite divides by it, Cohere multiplies)."""
    if divisor := getattr(config, "logits_scaling", None):
        return 1 / float(divisor)
    return float(getattr(config, "logit_scale", None) or 1)


def _float32_product(states: Tensor, weight: Tensor) -> Tensor:
    """states @ weight.T in float32. In bfloat16 logprobs would be rounded to steps of 0.03. In
    pieces, so that a bfloat16 weight is never there a second time as float32."""
    if weight.dtype == torch.float32:
        return tile_product(states, weight)
    pieces = torch.split(weight, _VOCABULARY_PIECE)
    return torch.cat([linear(states, piece.float()) for piece in pieces], dim=1)


def _max_context(config: Any) -> int:
    length = getattr(config, "max_position_embeddings", None)
    if not isinstance(length, int):
        raise _unsupported("no stated context length (max_position_embeddings)")
    return length


def _eos_token_ids(hf: Any) -> frozenset[int]:
    ids = getattr(hf.generation_config, "eos_token_id", None)
    if ids is None:
        ids = hf.config.get_text_config().eos_token_id
    return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)


def _no_model(folder: Path, why: str) -> GatewayError:
    return GatewayError(
        Kind.PRECONDITION,
        ErrorReason.ERROR_REASON_BASE_MODEL_NOT_FOUND,
        f"{folder} does not hold a causal language model that can be loaded: {why}",
        backend="local",
    )


def _unsupported(feature: str) -> GatewayError:
    return unsupported(f"base models with {feature}", "local")
