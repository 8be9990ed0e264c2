from __future__ import annotations

from pathlib import Path

import pytest

from tinkergate.core.admission import Admission
from tinkergate.core.settings import CoreSettings
from tinkergate.errors import GatewayError
from tinkergate.store import Store
from tinkergate.v1 import ErrorReason


def test_no_work_is_taken_while_the_store_is_behind(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/gateway.db", max_backlog_bytes=-1)
    store.open()
    with pytest.raises(GatewayError, match="behind") as caught:
        Admission(CoreSettings(queue_retry_delay=3), store).check()
    assert caught.value.reason == ErrorReason.ERROR_REASON_QUEUE_FULL
    assert caught.value.retry_after == 3
    store.close()


def test_one_request_is_taken_however_large(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/gateway.db")
    admission = Admission(CoreSettings(max_queued_bytes=10, max_message_bytes=4), store)
    admission.take(100, parked=True)
    with pytest.raises(GatewayError):
        admission.take(1, parked=False)
    admission.give_back(100)
    admission.take(6, parked=True)
    with pytest.raises(GatewayError):
        admission.take(1, parked=True)
    admission.take(4, parked=False)
