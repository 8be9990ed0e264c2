"""Log-probabilities of tokens from logits: the selective log-softmax.

For N rows of logits, `log_softmax(logits).gather(targets)` makes an array as large as the logits
to keep one number of each row. Here each logit is read once, in its own dtype, and nothing of that
size is made: with m the largest logit x of the row and t its temperature,

    s = sum_v exp((x[v] - m) / t)
    logprob[k] = (x[target k] - m) / t - log s,   logsumexp = m / t + log s
    entropy = log s - sum_v exp((x[v] - m) / t) (x[v] - m) / t / s

as online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867). The backward reads the logits
once more and makes their gradient from m, log s and what comes from above.
"""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tinkergate_kernels.dispatch import way_on
from tinkergate_kernels.selective_results import SelectiveScores

__all__ = ["SelectiveScores", "selective_logprob", "selective_scores"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def selective_logprob(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    bias: Tensor | None = None,
    overwrite_logits: bool = False,
) -> Tensor:
    """The log-probabilities in nats, float32, shaped like `targets`, of

        log_softmax(softcap tanh((logits + bias) / softcap) / temperature)

    logits: [N, V], float32, bfloat16 or float16. targets: int64 [N] or [N, K]. A target outside
    [0, V), such as -100, is ignored: its logprob is 0, without gradient, and nothing of a row is
    read that has no other target. temperature: of all rows, or [N]. bias: [V], frozen.
    Differentiable once in `logits`, for any gradient from above.

    With `overwrite_logits` the backward writes the gradient over the logits, which saves memory
    for N x V; they and what is made from them must not be used after it.

    Raises ValueError, before any work, if shapes, dtypes or devices do not fit, if temperature or
    softcap is not positive and finite (of a temperature [N] on a GPU that is not looked at), or if
    bias or temperature would need a gradient.
    """
    scores = selective_scores(
        logits,
        targets,
        temperature=temperature,
        softcap=softcap,
        bias=bias,
        overwrite_logits=overwrite_logits,
    )
    return scores.logprob


def selective_scores(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    bias: Tensor | None = None,
    entropy: bool = False,
    topk: int = 0,
    overwrite_logits: bool = False,
) -> SelectiveScores:
    """As `selective_logprob`, with the log-sum-exp, and where asked for the entropy of the
    prediction and its `topk` most likely tokens (1 is the argmax, at most V), which are not
    differentiable. A row without a target that counts has log-sum-exp and entropy 0, top-k ids -1
    and top-k logprobs 0."""
    _check(logits, targets, temperature, softcap, bias, topk)
    options = Options(softcap, entropy, topk, overwrite_logits)
    # Imported here because Triton is not there on every machine.
    room = way_on(logits.device)
    backend = importlib.import_module(f"tinkergate_kernels.{room}.selective")
    return scores_by(backend, logits, targets, temperature, bias, options)


class Options(NamedTuple):
    """The settings of one call that are no tensors."""

    softcap: float | None = None
    entropy: bool = False
    topk: int = 0
    overwrite_logits: bool = False


def scores_by(
    backend: ModuleType,
    logits: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    bias: Tensor | None,
    options: Options,
) -> SelectiveScores:
    """Scores by the `forward` and `backward` of `cpu.selective`, `gpu.selective` or
    `plain.selective`."""
    columns = targets if targets.ndim == 2 else targets[:, None]
    inverse: float | Tensor
    if isinstance(temperature, Tensor):
        inverse = temperature.detach().double().reciprocal().float()
    else:
        inverse = 1 / temperature
    logprob, logsumexp, spread, ids, values = _Selective.apply(
        logits, columns.contiguous(), bias, inverse, backend, options
    )
    return SelectiveScores(logprob.view(targets.shape), logsumexp, spread, ids, values)


class _Selective(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        inv_temperature: float | Tensor,
        backend: ModuleType,
        options: Options,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        logits = logits.detach()
        sums = backend.forward(
            logits,
            targets,
            bias,
            inv_temperature,
            options.softcap,
            options.entropy,
            options.topk,
        )
        ids, values = sums.topk_ids, sums.topk_logprobs
        if ids is not None:
            ctx.mark_non_differentiable(ids, values)
        row_temperature = inv_temperature if isinstance(inv_temperature, Tensor) else None
        ctx.save_for_backward(
            logits, targets, bias, row_temperature, sums.maximum, sums.log_total, sums.entropy
        )
        ctx.settings = (inv_temperature, backend, options)
        ctx.set_materialize_grads(False)
        ctx.overwritten = False
        return sums.logprob, sums.logsumexp, sums.entropy, ids, values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.overwritten:
            raise RuntimeError("the logits were overwritten by an earlier backward")
        logits, targets, bias, row_temperature, maximum, log_total, entropy = ctx.saved_tensors
        inv_temperature, backend, options = ctx.settings
        out = logits if options.overwrite_logits else torch.empty_like(logits)
        gradients = [None if g is None else g.float().contiguous() for g in upstream[:3]]
        backend.backward(
            logits,
            targets,
            bias,
            inv_temperature if row_temperature is None else row_temperature,
            options.softcap,
            (maximum, log_total, entropy),
            gradients,
            out,
        )
        if options.overwrite_logits:
            ctx.overwritten = True
            # Whoever else has kept the logits for a backward is told by autograd.
            torch.autograd.graph.increment_version(logits)
        return out, *([None] * 5)


def _check(
    logits: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    softcap: float | None,
    bias: Tensor | None,
    topk: int,
) -> None:
    if logits.ndim != 2:
        raise ValueError(f"logits have shape {list(logits.shape)}; must be [*, *]")
    rows, vocab = logits.shape
    if logits.dtype not in _DTYPES:
        raise ValueError(f"logits are {logits.dtype}; must be float32, bfloat16 or float16")
    if vocab == 0:
        raise ValueError("logits have no columns; there must be at least one token")
    if targets.ndim not in (1, 2) or targets.shape[0] != rows:
        shape = list(targets.shape)
        raise ValueError(f"targets have shape {shape}; must be [{rows}] or [{rows}, K]")
    if targets.dtype != torch.int64:
        raise ValueError(f"targets are {targets.dtype}; must be torch.int64")
    others = {"targets": targets}
    if bias is not None:
        if bias.shape != (vocab,):
            raise ValueError(f"bias has shape {list(bias.shape)}; must be [{vocab}]")
        others["bias"] = bias
    if isinstance(temperature, Tensor):
        if temperature.shape != (rows,):
            raise ValueError(f"temperature has shape {list(temperature.shape)}; must be [{rows}]")
        others["temperature"] = temperature
    elif not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature}; must be finite and positive")
    for name, tensor in others.items():
        if tensor.device != logits.device:
            raise ValueError(f"{name} is on {tensor.device}; logits are on {logits.device}")
        if name != "targets" and not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype}; must be a floating dtype")
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(f"{name} requires a gradient; only logits may")
    if isinstance(temperature, Tensor) and temperature.device.type == "cpu":
        wrong = temperature[~((temperature > 0) & (temperature < math.inf))]
        if wrong.numel():
            raise ValueError(f"temperature holds {float(wrong[0])}; must be finite and positive")
    if softcap is not None and not (math.isfinite(softcap) and softcap > 0):
        raise ValueError(f"softcap is {softcap}; must be finite and positive, or None")
    if not 0 <= topk <= vocab:
        raise ValueError(f"topk is {topk}; must be at least 0 and at most {vocab}")
