"""Losses of log-probabilities of tokens: supervised, policy-gradient and preference.

`LOSSES` says what there is, `evaluate` gives loss, gradient and metrics in one go, and `loss` is
the same for autograd.
"""

from tinkergate_kernels.losses.evaluation import evaluate, loss
from tinkergate_kernels.losses.problem import LossResult
from tinkergate_kernels.losses.registry import LOSSES, LossSpec, Setting

__all__ = ["LOSSES", "LossResult", "LossSpec", "Setting", "evaluate", "loss"]
