"""Tinkergate: a gRPC gateway for Tinker-style fine-tuning."""

__version__ = "0.1.0"

__all__ = ["__version__"]
