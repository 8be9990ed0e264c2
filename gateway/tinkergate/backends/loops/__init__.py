"""Baseten Loops as a backend."""
