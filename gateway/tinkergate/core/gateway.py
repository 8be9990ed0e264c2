"""The gateway put together from its parts."""

from __future__ import annotations

from collections.abc import Sequence

from tinkergate.backends.base import Backend
from tinkergate.core.checkpoints import Checkpoints
from tinkergate.core.models import Models
from tinkergate.core.operations import Operations
from tinkergate.core.samplers import Samplers
from tinkergate.core.sampling import Sampling
from tinkergate.core.scoring import Scoring
from tinkergate.core.sessions import Sessions
from tinkergate.core.settings import CoreSettings
from tinkergate.core.training import Training
from tinkergate.store import Store
from tinkergate.v1 import GetCapabilitiesResponse


class Gateway:
    """What every door speaks to: parts with one method an RPC, which take the request message,
    answer the response message and raise nothing but `GatewayError`. All methods run on the event
    loop that `start` ran on. Requests are handed over: the caller does not change them afterwards,
    nor the responses."""

    sessions: Sessions
    models: Models
    training: Training
    operations: Operations
    samplers: Samplers
    sampling: Sampling
    scoring: Scoring
    checkpoints: Checkpoints

    def __init__(
        self,
        backends: Sequence[Backend],
        store: Store,
        settings: CoreSettings,
        default_model: str = "",
    ) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        """Open the store, start the backends, and take up what an earlier run left."""
        raise NotImplementedError

    async def close(self, grace: float) -> None:
        """Refuse new work, give running operations `grace` seconds, then let go of everything."""
        raise NotImplementedError

    async def capabilities(self) -> GetCapabilitiesResponse:
        """What the backends do and which bounds the gateway sets."""
        raise NotImplementedError
