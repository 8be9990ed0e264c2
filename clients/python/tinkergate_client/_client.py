"""The way in: `connect`, and the client that it gives."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from importlib import metadata
from types import TracebackType
from typing import Self, Unpack

from tinkergate import v1
from tinkergate_client._checkpoints import Checkpoints
from tinkergate_client._connection import DEFAULT_ADDRESS, Connection, Tls
from tinkergate_client._datums import Tokens
from tinkergate_client._futures import OperationFuture
from tinkergate_client._listing import pages
from tinkergate_client._rendering import Renderer
from tinkergate_client._results import read_any
from tinkergate_client._sampling import Sampler
from tinkergate_client._scoring import Score, ScoreOptions, Source, score_stream
from tinkergate_client._session import Session

CLIENT_VERSION = f"tinkergate-python/{metadata.version('tinkergate')}"
_HEARTBEAT_INTERVAL = 10.0


def connect(
    target: str | None = None,
    *,
    api_key: str | None = None,
    tls: bool | Tls = False,
    timeout: float = 10.0,
    patience: float = 600.0,
) -> Client:
    """Connect to a gateway.

    Args:
        target: Its address; TINKERGATE_ADDRESS if None, and 127.0.0.1:7700 without that.
        api_key: TINKERGATE_API_KEY if None.
        tls: True for TLS with the system's authorities; `Tls` says more. Plain text by default.
        timeout: Seconds to wait for the gateway's first answer.
        patience: Seconds for which later calls are tried again while no gateway answers.

    Raises GatewayUnreachable if no gateway answers, AccessDenied for a wrong key.
    """
    if tls is True:
        tls = Tls()
    return Client(
        Connection(
            target or os.environ.get("TINKERGATE_ADDRESS") or DEFAULT_ADDRESS,
            api_key=api_key or os.environ.get("TINKERGATE_API_KEY"),
            tls=tls or None,
            timeout=timeout,
            patience=patience,
        )
    )


class Client:
    """A connection to a gateway. Safe to use from many threads; close it, or use it in a `with`
    block. All methods raise TinkergateError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.checkpoints = Checkpoints(connection)
        """What was saved."""

    @property
    def target(self) -> str:
        """The gateway's address."""
        return self._connection.target

    def capabilities(self) -> v1.GetCapabilitiesResponse:
        """What the gateway can do: backends, models, limits."""
        return self._connection.capabilities()

    def sessions(
        self, state: v1.SessionState.ValueType = v1.SessionState.SESSION_STATE_UNSPECIFIED
    ) -> Iterator[v1.Session]:
        """All sessions that the gateway remembers, or those in one state, newest first."""
        stub, request = self._connection.sessions, v1.ListSessionsRequest(state=state)
        for page in pages(self._connection, stub.ListSessions, request):
            yield from page.sessions

    def models(
        self,
        session_id: str = "",
        state: v1.ModelState.ValueType = v1.ModelState.MODEL_STATE_UNSPECIFIED,
    ) -> Iterator[v1.Model]:
        """The models of a session, or all, newest first; those in one state if it is given."""
        request = v1.ListModelsRequest(session_id=session_id, state=state)
        for page in pages(self._connection, self._connection.models.ListModels, request):
            yield from page.models

    def operations(
        self,
        model_id: str = "",
        state: v1.OperationState.ValueType = v1.OperationState.OPERATION_STATE_UNSPECIFIED,
    ) -> Iterator[v1.Operation]:
        """The operations of a model, or all, newest first and without their results; those in one
        state if it is given."""
        stub = self._connection.operations
        request = v1.ListOperationsRequest(model_id=model_id, state=state)
        for page in pages(self._connection, stub.ListOperations, request):
            yield from page.operations

    def create_session(
        self,
        *,
        display_name: str = "",
        tags: Sequence[str] = (),
        project_id: str = "",
        user_metadata: Mapping[str, str] | None = None,
    ) -> Session:
        """Open a session, which owns models and samplers. Use it in a `with` block."""
        request = v1.CreateSessionRequest(
            display_name=display_name,
            tags=tags,
            project_id=project_id,
            user_metadata=dict(user_metadata or {}),
            client_version=CLIENT_VERSION,
            request_id=str(uuid.uuid4()),
        )
        created = self._connection.call(self._connection.sessions.CreateSession, request)
        interval = created.heartbeat_interval.ToNanoseconds() / 1e9 or _HEARTBEAT_INTERVAL
        return Session(self._connection, created.session, interval)

    def attach_session(self, session_id: str) -> Session:
        """Go on in a session that another program opened, with a heartbeat of its own."""
        request = v1.GetSessionRequest(session_id=session_id)
        session = self._connection.call(self._connection.sessions.GetSession, request).session
        return Session(self._connection, session, _HEARTBEAT_INTERVAL)

    def set_session_project(self, session_id: str, project_id: str) -> v1.Session:
        """Move a session into a project; out of any if `project_id` is empty."""
        request = v1.SetSessionProjectRequest(session_id=session_id, project_id=project_id)
        return self._connection.call(self._connection.sessions.SetSessionProject, request).session

    def operation(self, name: str) -> OperationFuture[object]:
        """The result of an operation that any client submitted: what its future would have given
        there, but for the sampler of `save_weights_for_sampler`, which is a path or an id here."""
        request = v1.GetOperationRequest(name=name)
        found = self._connection.call(self._connection.operations.GetOperation, request).operation
        accepted: Future[Sequence[v1.Operation]] = Future()
        accepted.set_result([found])
        return OperationFuture(self._connection, accepted, read_any)

    def sampler(
        self,
        base_model: str = "",
        *,
        model_path: str = "",
        sampler_id: str = "",
        backend: str = "",
    ) -> Sampler:
        """Sample without a session: from a base model, a checkpoint, or a sampler that is there;
        from the gateway's default model if none is given."""
        return Sampler(self._connection, self._source(base_model, model_path, sampler_id, backend))

    def score(
        self,
        sequences: Iterable[Tokens],
        base_model: str = "",
        *,
        model_path: str = "",
        backend: str = "",
        **options: Unpack[ScoreOptions],
    ) -> list[Score]:
        """The logprob of every token of every sequence given those before it, under a base model
        or a checkpoint; under the gateway's default model if neither is given."""
        source = self._source(base_model, model_path, "", backend)
        return list(score_stream(self._connection, source, sequences, options))

    def score_stream(
        self,
        sequences: Iterable[Tokens],
        base_model: str = "",
        *,
        model_path: str = "",
        backend: str = "",
        **options: Unpack[ScoreOptions],
    ) -> Iterator[Score]:
        """`score` for more than fits in memory: sequences are taken as scores are asked for, and
        scores come in the same order."""
        source = self._source(base_model, model_path, "", backend)
        return score_stream(self._connection, source, sequences, options)

    def renderer(self, base_model: str = "") -> Renderer:
        """Turn chat messages into tokens and back for a base model; the default one if absent."""
        return Renderer(self._connection, base_model or self._connection.default_model())

    def close(self) -> None:
        """Give up all calls and the connection. Sessions that are not finished expire."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _source(self, base_model: str, model_path: str, sampler_id: str, backend: str) -> Source:
        if not (base_model or model_path or sampler_id):
            base_model = self._connection.default_model()
        return Source(sampler_id, base_model, model_path, backend)
