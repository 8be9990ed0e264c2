"""Where a service is: what its settings may say of it."""

from __future__ import annotations

from urllib.parse import urlsplit


def check_service(name: str, base_url: str, url: str) -> None:
    """Raises ValueError for a backend without a name, and for a `url` that is none; `base_url` is
    what the settings say, for the message."""
    if not name:
        raise ValueError("name is empty")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url is {base_url!r}; must be an http or https URL")
    if parts.query or parts.fragment or parts.username is not None:
        raise ValueError("base_url must have neither a query nor a fragment nor a user")
