"""The kernels in plain PyTorch: whole logits, autograd, any floating dtype, float64 for tests."""

from tinkergate_kernels.reference.linear import linear_logprob
from tinkergate_kernels.reference.selective import selective_scores

__all__ = ["linear_logprob", "selective_scores"]
