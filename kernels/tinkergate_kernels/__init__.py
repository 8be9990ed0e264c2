"""Logprob and loss kernels. Usable without the gateway.

`linear_logprob` goes from hidden states to logprobs without the logits, `selective_logprob` from
logits; `losses` are functions of logprobs. `reference` says the same in plain PyTorch, for tests
and readers.
"""

from tinkergate_kernels.linear import (
    LinearScores,
    Lora,
    linear_logprob,
    linear_partials,
    linear_scores,
)
from tinkergate_kernels.partials import Merged, Partials, concatenated, merge
from tinkergate_kernels.selective import SelectiveScores, selective_logprob, selective_scores

__all__ = [
    "LinearScores",
    "Lora",
    "Merged",
    "Partials",
    "SelectiveScores",
    "concatenated",
    "linear_logprob",
    "linear_partials",
    "linear_scores",
    "merge",
    "selective_logprob",
    "selective_scores",
]
