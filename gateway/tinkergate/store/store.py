"""The database behind the gateway."""

from __future__ import annotations


class Store:
    """What has to survive a restart. `url` is an SQLAlchemy URL, such as
    "sqlite:////var/lib/tinkergate/tinkergate.db"."""

    def __init__(self, url: str) -> None:
        self.url = url
