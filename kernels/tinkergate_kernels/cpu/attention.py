"""The same by PyTorch's fused attention, for half-precision states and unembeddings.

The mean of the unembedding under the prediction is attention: queries h / T, and the unembedding for
keys and for values. PyTorch's CPU kernel multiplies half-precision numbers, sums in float32 and
gives the log-sum-exp too, where a plain product would round each logit to 8 or 11 bits.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from tinkergate_kernels.cpu.linear import LN_2, Softmax

_ROWS = 32
"""The number of rows is made a multiple of it: a block of few rows has other bits."""

_BLOCK = 256
"""Rows at a time where the number of rows decides over the bits."""

_SPLIT = 16384
"""Tokens at a time: PyTorch copies keys and values into an order of its own."""

_HALVES = (torch.bfloat16, torch.float16)


def is_quick_for(hidden: Tensor, weight: Tensor) -> bool:
    """Whether both are of one half-precision type that this processor multiplies."""
    if hidden.dtype != weight.dtype or hidden.dtype not in _HALVES:
        return False
    bfloat16 = hidden.dtype == torch.bfloat16
    known = torch.ops.mkldnn
    return bool(
        known._is_mkldnn_bf16_supported() if bfloat16 else known._is_mkldnn_fp16_supported()
    )


def softmax(hidden: Tensor, weight: Tensor, targets: Tensor, inverse_temperature: float) -> Softmax:
    """As `tinkergate_kernels.cpu.linear.softmax` with the mean of W, for one temperature: states
    [N, D] and unembedding [V, D] of one half-precision type, targets int64 [N, K]. The mean of W
    is rounded to that type once for every 16384 tokens; the logprobs are not rounded."""
    count = len(hidden)
    step = count if _any_number_of_rows(hidden.shape[1], hidden.dtype) else _BLOCK
    means, log_sums = [], []
    for begin in range(0, count, max(step, 1)):
        rows = hidden[begin : begin + step]
        height = step if step != count else -(-count // _ROWS) * _ROWS
        missing = height - len(rows)
        filled = torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows
        mean, log_sum = _over_vocabulary(filled, weight, inverse_temperature)
        means.append(mean[: len(rows)])
        log_sums.append(log_sum[: len(rows)])
    mean_w, log_sum = torch.cat(means), torch.cat(log_sums)
    inside = (targets >= 0) & (targets < len(weight))
    logprob = torch.zeros(targets.shape)
    for k in range(targets.shape[1]):
        chosen = weight[targets[:, k].clamp(0, len(weight) - 1)]
        logit = torch.linalg.vecdot(hidden.float(), chosen.float()) * inverse_temperature
        logprob[:, k] = (logit - log_sum).clamp_(max=0)
    logprob.masked_fill_(~inside, 0.0)
    return Softmax(logprob, log_sum / LN_2, torch.ones(count), mean_w=mean_w)


def _over_vocabulary(rows: Tensor, weight: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The mean of W, float32 [R, D], and the log-sum-exp, float32 [R]: part after part."""
    total = mean = None
    for part in torch.split(weight, _SPLIT):
        found, log_sum = _attention(rows, part, scale)
        if total is None or mean is None:
            total, mean = log_sum, found
            continue
        both = torch.logaddexp(total, log_sum)
        mean.mul_((total - both).exp_()[:, None])
        mean.add_(found.mul_((log_sum - both).exp_()[:, None]))
        total = both
    assert total is not None
    assert mean is not None
    return mean, total


def _attention(rows: Tensor, weight: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    keys = weight[None, None]
    mean, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        rows[None, None], keys, keys, scale=scale
    )
    return mean[0, 0].float(), log_sum.reshape(-1).float()


@cache
def _any_number_of_rows(width: int, dtype: torch.dtype) -> bool:
    """Whether rows have the same bits in batches of all the sizes between which PyTorch's kernel
    changes how it cuts them."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(800, width, generator=generator).to(dtype)
    weight = torch.randn(2048, width, generator=generator).to(dtype)
    whole = _attention(rows, weight, 1.0)
    for count in (32, 64, 224, 256, 768):
        some = _attention(rows[:count].clone(), weight, 1.0)
        if not all(torch.equal(a, b[:count]) for a, b in zip(some, whole, strict=True)):
            return False
    return True
