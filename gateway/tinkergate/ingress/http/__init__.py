"""The HTTP door: one listening HTTP server, and what its dialects have in common."""
