"""Vision-language-action models that act."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from google.protobuf.json_format import MessageToDict

from tinkergate.v1 import (
    ActBatchRequest,
    ActRequest,
    CloseActionSessionRequest,
    ModelInput,
    VlaObservation,
)
from tinkergate_client._connection import Connection


def observation(model_input: ModelInput, state: Iterable[float] = ()) -> VlaObservation:
    """What a vision-language-action model sees: images and text, and the state of the body."""
    return VlaObservation(model_input=model_input, state=list(state))


class ActionSession:
    """Acts until it is closed: by `close`, at the end of a `with` block, or with the session that
    owns it. All methods raise TinkergateError."""

    def __init__(self, connection: Connection, action_session_id: str) -> None:
        self._connection = connection
        self.action_session_id = action_session_id
        """The action session's id."""

    def act(self, seen: VlaObservation) -> dict[str, Any]:
        """What to do for one observation: the provider's answer as it is."""
        request = ActRequest(action_session_id=self.action_session_id, observation=seen)
        return MessageToDict(self._connection.call(self._connection.mint.Act, request).result)

    def act_batch(self, seen: Sequence[VlaObservation]) -> dict[str, Any]:
        """What to do for each of several observations: the provider's answer as it is."""
        request = ActBatchRequest(action_session_id=self.action_session_id, observations=seen)
        return MessageToDict(self._connection.call(self._connection.mint.ActBatch, request).result)

    def close(self) -> None:
        """End it."""
        request = CloseActionSessionRequest(action_session_id=self.action_session_id)
        self._connection.call(self._connection.mint.CloseActionSession, request)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
