"""Sizes as people read them."""

from __future__ import annotations


def size_text(count: int) -> str:
    """A number of bytes, such as "12 B" and "1.5 GiB"."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
