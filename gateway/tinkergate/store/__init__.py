"""What has to survive a restart: SQLAlchemy, migrations, and one thread that writes."""

from tinkergate.store.lock import DataDirInUseError, DataDirLock
from tinkergate.store.schema import SchemaError
from tinkergate.store.store import Contents, Store
from tinkergate.store.tables import CheckpointRow, ModelRow, OperationRow, Row, SessionRow

__all__ = [
    "CheckpointRow",
    "Contents",
    "DataDirInUseError",
    "DataDirLock",
    "ModelRow",
    "OperationRow",
    "Row",
    "SchemaError",
    "SessionRow",
    "Store",
]
