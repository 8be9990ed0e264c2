"""The kernels on a GPU, in Triton.

Imported only where a tensor on a GPU asks for it: Triton is not there on every machine. Each module
lists the configurations that it ships as `SHIPPED`, for the ahead-of-time check.
"""
