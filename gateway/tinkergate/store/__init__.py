"""What has to survive a restart: SQLAlchemy, migrations, and one thread that writes."""

from tinkergate.store.lock import DataDirInUseError, DataDirLock
from tinkergate.store.store import Store

__all__ = ["DataDirInUseError", "DataDirLock", "Store"]
