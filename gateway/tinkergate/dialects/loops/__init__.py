"""Baseten Loops: its bodies as messages of the contract, and back. No network, no state."""
