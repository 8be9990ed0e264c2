"""Services that speak Tinker's REST dialect as backends: Tinker itself, and MinT."""
