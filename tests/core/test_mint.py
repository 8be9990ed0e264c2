"""MintService: what is refused, what is handed over, and what belongs to whom. The engine's own
numbers are tested with the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinkergate.backends.base import SavedCheckpoint, TrainingRequest, TrainingResult
from tinkergate.errors import GatewayError, Kind
from tinkergate.tensors import tensor_from_array, token_bytes
from tinkergate.v1 import (
    ActBatchRequest,
    ActBatchResponse,
    ActRequest,
    ActResponse,
    BackendCapabilities,
    Checkpoint,
    Chunk,
    CloseActionSessionRequest,
    CreateActionSessionRequest,
    CreateModelRequest,
    EncodedTextChunk,
    FinishSessionRequest,
    ForwardBackwardOutput,
    ForwardBackwardReverseKlRequest,
    GetCheckpointRequest,
    GetModelRequest,
    GetOperationRequest,
    InterpolateCheckpointsRequest,
    LoraConfig,
    ModelInput,
    OperationState,
    ReverseKlDatum,
    SaveStateRequest,
    VlaDatum,
    VlaObservation,
    VlaTrainStepRequest,
    VlaTrainStepResult,
)

BASE = "accounts/small"


@pytest.fixture
async def mint_house(open_house: Any, accounting: type[Any], tmp_path: Path) -> Any:
    """A gateway on a backend that keeps the books of MinT's requests too."""

    class Backend(accounting):  # type: ignore[misc]  # only known when the test runs
        def __init__(self) -> None:
            super().__init__(folder=tmp_path)
            self.sums: list[Checkpoint] = []
            self.open: dict[str, CreateActionSessionRequest] = {}
            self.acted: list[str] = []

        def capabilities(self) -> BackendCapabilities:
            told: BackendCapabilities = super().capabilities()
            told.reverse_kl = told.checkpoint_interpolation = True
            told.rollout_correction = told.vla = True
            return told

        def _result(self, request: TrainingRequest) -> TrainingResult:
            if isinstance(request, ForwardBackwardReverseKlRequest):
                return ForwardBackwardOutput(metrics={"loss:sum": request.temperature})
            if isinstance(request, VlaTrainStepRequest):
                return VlaTrainStepResult(metrics={"loss:mean": 0.5})
            result: TrainingResult = super()._result(request)
            return result

        async def interpolate_checkpoints(
            self, request: InterpolateCheckpointsRequest, checkpoint: Checkpoint
        ) -> SavedCheckpoint:
            await self.create_gate.wait()
            if self.fail_create is not None:
                raise self.fail_create
            self.sums.append(checkpoint)
            return SavedCheckpoint(9, has_optimizer=False, lora_config=LoraConfig(rank=7))

        async def create_action_session(self, request: CreateActionSessionRequest) -> str:
            await self.create_gate.wait()
            upstream_id = f"up-{len(self.open)}"
            self.open[upstream_id] = request
            return upstream_id

        async def act(self, request: ActRequest) -> ActResponse:
            self.acted.append(request.action_session_id)
            answer = ActResponse()
            answer.result.update({"action": request.observation.state[0]})
            return answer

        async def act_batch(self, request: ActBatchRequest) -> ActBatchResponse:
            self.acted.append(request.action_session_id)
            answer = ActBatchResponse()
            answer.result.update({"actions": len(request.observations)})
            return answer

        async def close_action_session(self, action_session_id: str) -> None:
            del self.open[action_session_id]

    return await open_house(backend=Backend())


def text(tokens: Sequence[int]) -> ModelInput:
    return ModelInput(chunks=[Chunk(encoded_text=EncodedTextChunk(tokens=token_bytes(tokens)))])


def reverse_kl(
    model: str,
    reference: str = BASE,
    *,
    tokens: Sequence[int] = (1, 2, 3),
    reference_tokens: Sequence[int] = (9, 8, 2, 3),
    targets: Sequence[int] = (2, 3, 4),
    weights: Sequence[float] = (1.0, 0.0, -1.0),
    **fields: Any,
) -> ForwardBackwardReverseKlRequest:
    datum = ReverseKlDatum(
        student_input=text(tokens),
        reference_input=text(reference_tokens),
        target_tokens=tensor_from_array(np.array(targets, np.int64)),
        weights=tensor_from_array(np.array(weights, np.float32)),
    )
    return ForwardBackwardReverseKlRequest(
        model_id=model, reference_model_path=reference, data=[datum], **fields
    )


async def save(house: Any, model: str, name: str = "a") -> str:
    operation = await house.gateway.training.submit(SaveStateRequest(model_id=model, name=name))
    path: str = (await house.wait(operation)).save_state.path
    return path


async def test_reverse_kl_takes_its_turn(mint_house: Any, make: Any) -> None:
    gateway, model = mint_house.gateway, await mint_house.model()
    path = await save(mint_house, model)
    await gateway.training.submit(make.forward_backward(model, 1.0))
    asked = [
        await gateway.mint.forward_backward_reverse_kl(reverse_kl(model, reference, temperature=2))
        for reference in (BASE, "small", path)
    ]
    await gateway.training.submit(make.optim_step(model))
    done = [await mint_house.wait(operation) for operation in asked]
    assert [each.forward_backward.metrics["loss:sum"] for each in done] == [2, 2, 2]
    kinds = [kind for _, kind, _ in mint_house.backend.journal[1:]]
    assert kinds[1:4] == ["ForwardBackwardReverseKlRequest"] * 3
    sent = [each.reference_model_path for each in mint_house.backend.submitted[2:5]]
    assert sent == [BASE, BASE, path]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"reference": ""}, "reference_model_path"),
        ({"reference": "accounts/frozen"}, "reference_model_path"),
        ({"reference": "tinker://x/weights"}, "reference_model_path"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"seq_id": 0}, "seq_id"),
        ({"tokens": []}, "data[0].student_input.chunks"),
        ({"tokens": [1, 2, 100]}, "data[0].student_input.chunks[0].encoded_text.tokens"),
        ({"reference_tokens": []}, "data[0].reference_input.chunks"),
        ({"reference_tokens": [2, 3]}, "data[0].reference_input"),
        ({"reference_tokens": [1, 3, 3]}, "data[0].reference_input"),
        ({"targets": [2, 3]}, "data[0].target_tokens"),
        ({"targets": [2, 3, 100]}, "data[0].target_tokens"),
        ({"weights": [1.0]}, "data[0].weights"),
        ({"weights": [1.0, 0.0, float("inf")]}, "data[0].weights"),
    ],
)
async def test_what_is_wrong_with_reverse_kl_is_named(
    mint_house: Any, change: dict[str, Any], field: str
) -> None:
    model = await mint_house.model()
    with pytest.raises(GatewayError) as caught:
        await mint_house.gateway.mint.forward_backward_reverse_kl(reverse_kl(model, **change))
    assert caught.value.kind is Kind.INVALID
    assert field in [violation.field for violation in caught.value.violations]
    assert mint_house.backend.submitted == []


async def test_rows_without_weight_need_no_counterpart(mint_house: Any) -> None:
    model = await mint_house.model()
    for weights, reference in (((0.0, 0.0, 1.0), [5]), ((0.0, 0.0, 0.0), [5])):
        request = reverse_kl(model, weights=weights, reference_tokens=reference)
        done = await mint_house.wait(
            await mint_house.gateway.mint.forward_backward_reverse_kl(request)
        )
        assert done.state == OperationState.OPERATION_STATE_SUCCEEDED


async def test_a_backend_without_it_refuses_everything(house: Any) -> None:
    model, mint = await house.model(), house.gateway.mint
    path = await save(house, model)
    session = await house.session()
    step = VlaTrainStepRequest(model_id=model, loss_fn="flow_matching")
    calls = [
        mint.forward_backward_reverse_kl(reverse_kl(model)),
        mint.interpolate_checkpoints(
            InterpolateCheckpointsRequest(source_paths=[path], coefficients=[1.0])
        ),
        mint.vla_train_step(step),
        mint.create_action_session(CreateActionSessionRequest(session_id=session, base_model=BASE)),
        house.gateway.models.create(
            CreateModelRequest(
                session_id=session, base_model=BASE, rollout_correction={"threshold": 1.1}
            )
        ),
    ]
    for call in calls:
        with pytest.raises(GatewayError) as caught:
            await call
        assert caught.value.kind is Kind.UNSUPPORTED
        assert caught.value.backend == "books"


async def test_a_rollout_correction_is_kept_with_the_model(mint_house: Any) -> None:
    model = await mint_house.model(rollout_correction={"threshold": 1.5, "weight_cap": 1.1})
    told = (await mint_house.gateway.models.get(GetModelRequest(model_id=model))).model
    assert told.rollout_correction.threshold == 1.5
    assert told.rollout_correction.weight_cap == 1.1
    assert not told.rollout_correction.HasField("lower_threshold")


async def test_an_interpolation_belongs_to_no_model(mint_house: Any) -> None:
    gateway = mint_house.gateway
    paths = [await save(mint_house, await mint_house.model()) for _ in range(2)]
    mint_house.backend.create_gate.clear()
    request = InterpolateCheckpointsRequest(
        source_paths=paths, coefficients=[0.5, -2.0], output_name="mix", request_id="r"
    )

    def again(**change: Any) -> InterpolateCheckpointsRequest:
        copy = InterpolateCheckpointsRequest()
        copy.CopyFrom(request)
        copy.MergeFrom(InterpolateCheckpointsRequest(**change))
        return copy

    first = await gateway.mint.interpolate_checkpoints(again())
    assert first.model_id == ""
    repeat = await gateway.mint.interpolate_checkpoints(again())
    assert repeat.name == first.name
    with pytest.raises(GatewayError) as caught:
        await gateway.mint.interpolate_checkpoints(again(output_name="other"))
    assert caught.value.kind is Kind.CONFLICT
    mint_house.backend.create_gate.set()
    done = (await mint_house.wait(first)).interpolate_checkpoints
    assert list(done.source_paths) == paths
    assert list(done.coefficients) == [0.5, -2.0]
    made = (await gateway.checkpoints.get(GetCheckpointRequest(path=done.path))).checkpoint
    assert made.checkpoint_id == "sampler_weights/mix"
    assert (made.lora_rank, made.size_bytes, made.base_model) == (7, 9, BASE)
    assert [each.path for each in mint_house.backend.sums] == [done.path]
    other = await gateway.mint.interpolate_checkpoints(again(request_id="s"))
    assert other.name != first.name


async def test_an_interpolation_that_fails_leaves_no_checkpoint(mint_house: Any) -> None:
    path = await save(mint_house, await mint_house.model())
    mint_house.backend.fail_create = RuntimeError("disk on fire")
    request = InterpolateCheckpointsRequest(source_paths=[path], coefficients=[1.0])
    operation = await mint_house.gateway.mint.interpolate_checkpoints(request)
    done = await mint_house.wait(operation)
    assert done.state == OperationState.OPERATION_STATE_FAILED
    assert "disk on fire" not in done.error.message
    found = await mint_house.gateway.operations.get(GetOperationRequest(name=operation.name))
    assert found.operation.error == done.error


async def test_sources_must_go_together(mint_house: Any) -> None:
    path = await save(mint_house, await mint_house.model())
    registry = mint_house.gateway.checkpoints._registry
    for number, change in enumerate(({"base_model": "other"}, {"backend": "other"})):
        odd = Checkpoint()
        odd.CopyFrom(registry.require(path).message)
        odd.path = f"tinker://s-{number}:train:0/weights/odd"
        odd.MergeFrom(Checkpoint(**change))
        registry.add(odd, has_optimizer=False)
        request = InterpolateCheckpointsRequest(
            source_paths=[path, odd.path], coefficients=[1.0, 1.0]
        )
        with pytest.raises(GatewayError, match=next(iter(change))) as caught:
            await mint_house.gateway.mint.interpolate_checkpoints(request)
        assert [violation.field for violation in caught.value.violations] == ["source_paths[1]"]


def vla_step(model: str, **fields: Any) -> VlaTrainStepRequest:
    observation = VlaObservation(model_input=text([1]), state=[0.5])
    actions = tensor_from_array(np.zeros((4, 2), np.float32))
    return VlaTrainStepRequest(
        model_id=model,
        loss_fn="flow_matching",
        data=[VlaDatum(observation=observation, actions=actions)],
        **fields,
    )


async def test_a_vla_step_is_a_step(mint_house: Any) -> None:
    model = await mint_house.model()
    operation = await mint_house.gateway.mint.vla_train_step(vla_step(model, seq_id=1))
    done = await mint_house.wait(operation)
    assert done.vla_train_step.metrics["loss:mean"] == 0.5
    told = await mint_house.gateway.models.get(GetModelRequest(model_id=model))
    assert told.model.optimizer_steps == 1
    bad = vla_step(model, seq_id=2)
    bad.data[0].actions.CopyFrom(tensor_from_array(np.zeros(4, np.float32)))
    bad.data[0].observation.state.append(float("nan"))
    bad.loss_fn = ""
    with pytest.raises(GatewayError) as caught:
        await mint_house.gateway.mint.vla_train_step(bad)
    assert {violation.field for violation in caught.value.violations} == {
        "loss_fn",
        "data[0].actions",
        "data[0].observation.state[1]",
    }


async def open_actions(house: Any, session: str) -> str:
    request = CreateActionSessionRequest(session_id=session, base_model="small", owner_id="o")
    made = await house.gateway.mint.create_action_session(request)
    new_id: str = made.action_session_id
    return new_id


async def test_action_sessions_end_with_their_session(mint_house: Any) -> None:
    mint, backend = mint_house.gateway.mint, mint_house.backend
    session = await mint_house.session()
    first, second = [await open_actions(mint_house, session) for _ in range(2)]
    assert first != second
    assert first.startswith(session)
    assert {each.base_model for each in backend.open.values()} == {BASE}
    seen = VlaObservation(model_input=text([1]), state=[0.25])
    answer = await mint.act(ActRequest(action_session_id=second, observation=seen))
    assert answer.result["action"] == 0.25
    batch = await mint.act_batch(
        ActBatchRequest(action_session_id=first, observations=[seen, seen])
    )
    assert batch.result["actions"] == 2
    assert backend.acted == ["up-1", "up-0"]
    await mint.close_action_session(CloseActionSessionRequest(action_session_id=first))
    assert list(backend.open) == ["up-1"]
    for call in (
        mint.act(ActRequest(action_session_id=first, observation=seen)),
        mint.close_action_session(CloseActionSessionRequest(action_session_id=first)),
    ):
        with pytest.raises(GatewayError) as caught:
            await call
        assert caught.value.kind is Kind.NOT_FOUND
    await mint_house.gateway.sessions.finish(FinishSessionRequest(session_id=session))
    await mint_house.until(lambda: not backend.open)
    with pytest.raises(GatewayError):
        await mint.act(ActRequest(action_session_id=second, observation=seen))


async def test_an_action_session_that_opens_too_late_is_closed(mint_house: Any) -> None:
    backend, session = mint_house.backend, await mint_house.session()
    backend.create_gate.clear()
    opening = asyncio.ensure_future(open_actions(mint_house, session))
    await asyncio.sleep(0)
    opening.cancel()
    await mint_house.gateway.sessions.finish(FinishSessionRequest(session_id=session))
    backend.create_gate.set()
    await mint_house.until(lambda: mint_house.gateway._background._tasks == set())
    await asyncio.sleep(0)
    await mint_house.until(lambda: not backend.open)


async def test_what_acts_needs_something_to_see(mint_house: Any) -> None:
    action = await open_actions(mint_house, await mint_house.session())
    mint = mint_house.gateway.mint
    for call, field in (
        (mint.act(ActRequest(action_session_id=action)), "observation.model_input"),
        (mint.act_batch(ActBatchRequest(action_session_id=action)), "observations"),
        (mint.create_action_session(CreateActionSessionRequest()), "session_id"),
    ):
        with pytest.raises(GatewayError) as caught:
            await call
        assert field in [violation.field for violation in caught.value.violations]
