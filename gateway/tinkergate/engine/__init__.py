"""The embedded engine: PyTorch, LoRA and sampling. Knows neither messages nor gRPC."""
