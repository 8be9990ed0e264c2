"""Logprob and loss kernels. Usable without the gateway."""
