"""Logprob and loss kernels. Usable without the gateway.

`linear_logprob` is the kernel; `reference` says the same in plain PyTorch, for tests and readers.
"""

from tinkergate_kernels.linear import LinearScores, Lora, linear_logprob, linear_scores

__all__ = ["LinearScores", "Lora", "linear_logprob", "linear_scores"]
