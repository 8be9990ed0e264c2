"""Which models there are: those that a backend has, and those that are only remembered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tinkergate.core.ids import model_id
from tinkergate.core.model_entry import LiveModel, ModelEntry
from tinkergate.errors import GatewayError, Kind
from tinkergate.store import ModelRow, Store
from tinkergate.v1 import ErrorReason, Model, ModelState


class ModelBook:
    """All models, and the store's account of them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._entries: dict[str, ModelEntry] = {}
        self._live: dict[str, LiveModel] = {}
        self._next_number = 1

    def __contains__(self, model_id: str) -> bool:
        return model_id in self._entries

    @property
    def live(self) -> Sequence[LiveModel]:
        """The models that a backend has or is making."""
        return list(self._live.values())

    def newest_first(self) -> Iterator[ModelEntry]:
        """All models."""
        return reversed(self._entries.values())

    def of_session(self, session_id: str) -> Sequence[ModelEntry]:
        """The models of a session, oldest first."""
        return [e for e in self._entries.values() if e.message.session_id == session_id]

    def free_id(self, session_id: str) -> str:
        """The first model id of a session that no model has."""
        number = 0
        while (new_id := model_id(session_id, number)) in self._entries:
            number += 1
        return new_id

    def add(self, message: Model) -> ModelEntry:
        """A new model."""
        entry = ModelEntry(self._next_number, message)
        self._next_number += 1
        self._entries[entry.model_id] = entry
        self._store.insert(
            ModelRow,
            model_id=entry.model_id,
            number=entry.number,
            session_id=message.session_id,
            state=message.state,
            message=message.SerializeToString(),
        )
        return entry

    def enter(self, live: LiveModel) -> None:
        """A backend is making the model."""
        self._live[live.entry.model_id] = live

    def leave(self, live: LiveModel, state: ModelState.ValueType) -> None:
        """No backend has the model any more."""
        self._live.pop(live.entry.model_id, None)
        self.note(live.entry, state)

    def note(self, entry: ModelEntry, state: ModelState.ValueType | None = None) -> None:
        """Have the store follow a model; `state` is a new one."""
        if state is not None:
            entry.message.state = state
        self._store.update(
            ModelRow,
            entry.model_id,
            state=entry.state,
            message=entry.message.SerializeToString(),
        )

    def find_live(self, model_id: str) -> LiveModel | None:
        """The model of that id, if a backend has it or is making it."""
        return self._live.get(model_id)

    def require(self, model_id: str) -> ModelEntry:
        """The model of that id. Raises NOT_FOUND."""
        entry = self._entries.get(model_id)
        if entry is None:
            raise GatewayError(
                Kind.NOT_FOUND,
                ErrorReason.ERROR_REASON_MODEL_NOT_FOUND,
                f"there is no model {model_id!r}",
            )
        return entry

    def require_live(self, model_id: str) -> LiveModel:
        """The model of that id, which takes operations. Raises NOT_FOUND or PRECONDITION."""
        live = self._live.get(model_id)
        if live is None or live.closing:
            raise self.require(model_id).not_ready()
        return live

    def render(self, entry: ModelEntry) -> Model:
        """A model as an answer."""
        live = self._live.get(entry.model_id)
        return entry.render(0 if live is None else live.sequencer.next_seq)

    def forget(self, entry: ModelEntry) -> None:
        """Forget a model that no backend has."""
        del self._entries[entry.model_id]
        self._store.delete(ModelRow, entry.model_id)

    def restore(self, rows: Sequence[ModelRow]) -> None:
        """Take up what an earlier run of the gateway left: none of it is in memory any more."""
        gone = (ModelState.MODEL_STATE_CREATING, ModelState.MODEL_STATE_READY)
        for row in rows:
            entry = ModelEntry(row.number, Model.FromString(row.message))
            self._entries[row.model_id] = entry
            self._next_number = row.number + 1
            if entry.state in gone:
                self.note(entry, ModelState.MODEL_STATE_LOST)
