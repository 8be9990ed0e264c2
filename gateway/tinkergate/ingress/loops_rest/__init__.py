"""Baseten Loops' HTTP API, for its official SDK and the Tinker shim on it."""
