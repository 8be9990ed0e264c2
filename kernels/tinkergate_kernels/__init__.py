"""Logprob and loss kernels. Usable without the gateway.

`linear_logprob` is the kernel; `reference` says the same in plain PyTorch, for tests and readers.
"""

from tinkergate_kernels.linear import Lora, Tiling, linear_logprob

__all__ = ["Lora", "Tiling", "linear_logprob"]
