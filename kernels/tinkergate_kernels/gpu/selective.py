"""Launches of the selective log-softmax, and the configurations that it ships.

One program takes one row in tiles of 8192 logits, or of 2048 where the largest are kept too; the
backward takes one tile of 8192 with each program. Whatever a row is a batch with, it goes through
the same steps. Results are the same bits each time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from tinkergate_kernels.gpu.selective_backward import selective_backward_kernel
from tinkergate_kernels.gpu.selective_forward import selective_forward_kernel
from tinkergate_kernels.gpu.shipped import TARGETS, Bounds, Shipped
from tinkergate_kernels.packed_order import pack, unpack
from tinkergate_kernels.selective_results import Sums

MOST_KEPT = 64
"""Up to this top-k the largest logits are kept in the one pass. Beyond, PyTorch's top-k reads the
logits again, a few hundred megabytes at a time."""
LANES = 256
"""Threads of a program. Each has its own running sums, which meet after the last tile only."""
BACKWARD_TILE = 8192
_FALLBACK_LOGITS = 1 << 24


def forward(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    inv_temperature: float | Tensor,
    softcap: float | None,
    entropy: bool,
    topk: int,
) -> Sums:
    """Scores of logits [N, V] at targets [N, K]."""
    rows, vocab = logits.shape
    logits = logits if logits.stride(1) == 1 or vocab == 1 else logits.contiguous()

    def numbers(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=logits.device)

    in_one_pass = 0 < topk <= MOST_KEPT
    sums = Sums(
        logprob=numbers(*targets.shape),
        logsumexp=numbers(rows),
        entropy=numbers(rows) if entropy else None,
        maximum=numbers(rows),
        log_total=numbers(rows),
        topk_ids=targets.new_empty(rows, topk) if in_one_pass else None,
        topk_logprobs=numbers(rows, topk) if in_one_pass else None,
    )
    if rows:
        constants = _tile(logits.dtype, topk if in_one_pass else 0)
        with _on(logits):
            selective_forward_kernel[(rows,)](
                logits,
                targets,
                bias,
                inv_temperature if isinstance(inv_temperature, Tensor) else None,
                *sums,
                logits.stride(0),
                vocab,
                targets.shape[1],
                topk,
                *_scalars(inv_temperature, softcap),
                **constants,
                TARGETS=_targets_at_once(targets.shape[1]),
                ROW_TEMPERATURE=isinstance(inv_temperature, Tensor),
                BIAS=bias is not None,
                SOFTCAP=softcap is not None,
                ENTROPY=entropy,
                num_warps=_warps(),
            )
    if topk and not in_one_pass:
        ids, values = _large_topk(logits, targets, bias, inv_temperature, softcap, sums, topk)
        sums = sums._replace(topk_ids=ids, topk_logprobs=values)
    return sums


def backward(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    inv_temperature: float | Tensor,
    softcap: float | None,
    statistics: tuple[Tensor, Tensor, Tensor | None],
    upstream: Sequence[Tensor | None],
    out: Tensor,
) -> None:
    """Write the gradient of the logits into `out`, which may be the logits. `statistics` are
    maximum, log_total and entropy; `upstream` the gradients of logprob, logsumexp and entropy,
    contiguous float32."""
    rows, vocab = logits.shape
    if not rows:
        return
    target = out
    if vocab > 1 and (logits.stride(1) != 1 or out.stride(1) != 1):
        logits = target = logits.contiguous()
    with _on(logits):
        selective_backward_kernel[(rows, triton.cdiv(vocab, BACKWARD_TILE))](
            logits,
            targets,
            bias,
            inv_temperature if isinstance(inv_temperature, Tensor) else None,
            *statistics,
            *upstream,
            target,
            logits.stride(0),
            target.stride(0),
            vocab,
            targets.shape[1],
            *_scalars(inv_temperature, softcap),
            TILE=BACKWARD_TILE,
            TARGETS=_targets_at_once(targets.shape[1]),
            ROW_TEMPERATURE=isinstance(inv_temperature, Tensor),
            BIAS=bias is not None,
            SOFTCAP=softcap is not None,
            LOGPROB=upstream[0] is not None,
            LOGSUMEXP=upstream[1] is not None,
            ENTROPY=upstream[2] is not None,
            num_warps=_warps(),
        )
    if target is not out:
        out.copy_(target)


def _large_topk(
    logits: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    inv_temperature: float | Tensor,
    softcap: float | None,
    sums: Sums,
    topk: int,
) -> tuple[Tensor, Tensor]:
    """The ids and logprobs [N, topk] of the most likely tokens, by PyTorch."""
    rows, vocab = logits.shape
    ids = targets.new_full((rows, topk), -1)
    logprobs = torch.zeros((rows, topk), dtype=torch.float32, device=logits.device)
    live = ((targets >= 0) & (targets < vocab)).any(dim=1).nonzero().squeeze(1)
    for part in live.split(max(1, _FALLBACK_LOGITS // vocab)):
        x = logits[part].float()
        if bias is not None:
            x += bias
        if softcap is not None:
            x = softcap * torch.tanh(x / softcap)
        ids[part], x = unpack(pack(x, 0).topk(topk, dim=1).values)
        inverse = inv_temperature
        if isinstance(inverse, Tensor):
            inverse = inverse[part, None]
        log_total = sums.log_total[part, None] * math.log(2)
        logprobs[part] = ((x - sums.maximum[part, None]) * inverse - log_total).clamp_(max=0)
    return ids, logprobs


def _tile(dtype: torch.dtype, kept: int) -> dict[str, int]:
    """A tile has U vectors of 16 bytes for each lane."""
    vector = 16 // dtype.itemsize
    tile = 2048 if kept else 8192
    return {
        "U": tile // (LANES * vector),
        "LANES": LANES,
        "VEC": vector,
        "KEPT": triton.next_power_of_2(max(kept, 2)) if kept else 0,
    }


def _targets_at_once(count: int) -> int:
    return min(triton.next_power_of_2(max(count, 1)), 64)


def _scalars(inv_temperature: float | Tensor, softcap: float | None) -> tuple[float, float, float]:
    shared = 1.0 if isinstance(inv_temperature, Tensor) else inv_temperature
    return (shared, 1.0, 1.0) if softcap is None else (shared, softcap, 1 / softcap)


def _warps(lanes_of_a_warp: int | None = None) -> int:
    return LANES // (lanes_of_a_warp or (64 if torch.version.hip else 32))


def _on(tensor: Tensor) -> Any:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


_NUMBERS = {"inv_temperature": "fp32", "softcap": "fp32", "inv_softcap": "fp32", "count": "i32"}
_NVIDIA = tuple(target for target in TARGETS if target.startswith("sm_"))
_AMD = tuple(target for target in TARGETS if target.startswith("gfx"))


def _shipped_forward(name: str, dtype: torch.dtype, kept: int, **features: bool) -> list[Shipped]:
    options = {"ROW_TEMPERATURE": False, "BIAS": False, "SOFTCAP": False, "ENTROPY": False}
    options |= features
    tile = _tile(dtype, kept)
    pointers = {
        "logits": f"*{_TYPES[dtype]}",
        "targets": "*i64",
        "bias": "*fp32",
        "inv_temperatures": "*fp32",
        "logprob": "*fp32",
        "logsumexp": "*fp32",
        "entropy": "*fp32",
        "maximum_out": "*fp32",
        "log_total_out": "*fp32",
        "topk_ids": "*i64",
        "topk_logprobs": "*fp32",
    }
    absent = {
        "bias": not options["BIAS"],
        "inv_temperatures": not options["ROW_TEMPERATURE"],
        "entropy": not options["ENTROPY"],
        "topk_ids": not kept,
        "topk_logprobs": not kept,
    }
    lean = not (options["SOFTCAP"] or options["BIAS"] or kept)
    return _for_each_vendor(
        name,
        selective_forward_kernel,
        pointers,
        absent,
        {"stride": "i32", "vocab": "i32", "topk": "i32"},
        {**tile, "TARGETS": 1, **options},
        ("stride",),
        # With the largest kept, how often the inner loop turns depends on the logits.
        elements=0 if kept else tile["U"] * tile["LANES"] * tile["VEC"],
        bounds=Bounds(
            instructions_per_element=10.0 if lean else None,
            special_functions_per_element=1.1 if lean else None,
        ),
    )


def _shipped_backward(name: str, dtype: torch.dtype, **features: bool) -> list[Shipped]:
    options = {"ROW_TEMPERATURE": False, "BIAS": False, "SOFTCAP": False}
    options |= {"LOGPROB": True, "LOGSUMEXP": False, "ENTROPY": False} | features
    pointers = {
        "logits": f"*{_TYPES[dtype]}",
        "targets": "*i64",
        "bias": "*fp32",
        "inv_temperatures": "*fp32",
        "maximum": "*fp32",
        "log_total": "*fp32",
        "entropy": "*fp32",
        "grad_logprob": "*fp32",
        "grad_logsumexp": "*fp32",
        "grad_entropy": "*fp32",
        "grad": f"*{_TYPES[dtype]}",
    }
    absent = {
        "bias": not options["BIAS"],
        "inv_temperatures": not options["ROW_TEMPERATURE"],
        "entropy": not options["ENTROPY"],
        "grad_logprob": not options["LOGPROB"],
        "grad_logsumexp": not options["LOGSUMEXP"],
        "grad_entropy": not options["ENTROPY"],
    }
    return _for_each_vendor(
        name,
        selective_backward_kernel,
        pointers,
        absent,
        {"stride": "i32", "grad_stride": "i32", "vocab": "i32"},
        {"TILE": BACKWARD_TILE, "TARGETS": 1, **options},
        ("stride", "grad_stride"),
        elements=0,
        bounds=Bounds(),
    )


_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def _for_each_vendor(
    name: str,
    kernel: Any,
    pointers: Mapping[str, str],
    absent: Mapping[str, bool],
    integers: Mapping[str, str],
    constants: Mapping[str, Any],
    divisible: tuple[str, ...],
    *,
    elements: int,
    bounds: Bounds,
) -> list[Shipped]:
    """One configuration for the GPUs with warps of 32, one for those of 64: the same lanes."""
    without = {pointer: None for pointer, missing in absent.items() if missing}
    given = {pointer: kind for pointer, kind in pointers.items() if pointer not in without}
    return [
        Shipped(
            name=f"{name}{vendor}",
            kernel=kernel,
            signature={**given, **integers, **_NUMBERS},
            constants={**constants, **without},
            divisible_by_16=(*given, *divisible),
            num_warps=_warps(lanes),
            targets=targets,
            elements_per_loop=elements,
            bounds=bounds,
        )
        for vendor, lanes, targets in (("", 32, _NVIDIA), (" amd", 64, _AMD))
    ]


SHIPPED: tuple[Shipped, ...] = (
    *_shipped_forward("selective_forward bf16", torch.bfloat16, 0),
    *_shipped_forward("selective_forward entropy bf16", torch.bfloat16, 0, ENTROPY=True),
    *_shipped_forward("selective_forward entropy fp16", torch.float16, 0, ENTROPY=True),
    *_shipped_forward("selective_forward entropy fp32", torch.float32, 0, ENTROPY=True),
    *_shipped_forward(
        "selective_forward all bf16",
        torch.bfloat16,
        0,
        ROW_TEMPERATURE=True,
        BIAS=True,
        SOFTCAP=True,
        ENTROPY=True,
    ),
    *_shipped_forward("selective_forward argmax bf16", torch.bfloat16, 1),
    *_shipped_forward("selective_forward top-20 bf16", torch.bfloat16, 20, ENTROPY=True),
    *_shipped_forward("selective_forward top-64 fp32", torch.float32, MOST_KEPT, ENTROPY=True),
    *_shipped_backward("selective_backward bf16", torch.bfloat16),
    *_shipped_backward("selective_backward fp16", torch.float16),
    *_shipped_backward("selective_backward entropy fp32", torch.float32, ENTROPY=True),
    *_shipped_backward(
        "selective_backward all bf16",
        torch.bfloat16,
        ROW_TEMPERATURE=True,
        BIAS=True,
        SOFTCAP=True,
        LOGSUMEXP=True,
        ENTROPY=True,
    ),
)
