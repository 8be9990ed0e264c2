"""The embedded engine through the Backend protocol: sampling and scoring."""

import asyncio

import numpy as np
import pytest
from local_backend import BASE, chunks, drawing, ignore, sample, score

from tinkergate.backends.base import SampleEvents
from tinkergate.backends.local.backend import LocalBackend
from tinkergate.tensors import (
    array_from_tensor,
    arrays_from_batched,
    batched_from_arrays,
    floats_from_bytes,
    tensor_from_array,
    tokens_from_bytes,
)
from tinkergate.v1 import (
    ModelInput,
    SampledSequence,
    SampleRequest,
    SampleResponse,
    ScoreRequest,
    SparseCsr,
    StopReason,
    Tensor,
)


async def test_a_sample_answers_everything_that_was_asked(backend: LocalBackend) -> None:
    prompt = [9, 8, 7, 6, 5]
    targets = np.array([[1, 2], [3, -1], [-1, -1], [4, 5]])
    prompts: list[SampleResponse] = []
    sequences: list[tuple[int, SampledSequence]] = []
    request = SampleRequest(
        base_model=BASE,
        prompt=ModelInput(chunks=chunks(prompt[:2]) + chunks(prompt[2:])),
        num_samples=3,
        sampling_params=drawing(7, temperature=0.8),
        prompt_logprobs=True,
        topk_prompt_logprobs=4,
        topk_sample_logprobs=2,
        target_prompt_logprobs=tensor_from_array(targets),
        prompt_alt_tokens_k=3,
    )
    response = await backend.sample(
        request, SampleEvents(prompts.append, lambda index, s: sequences.append((index, s)))
    )
    assert [index for index, _ in sorted(sequences, key=lambda pair: pair[0])] == [0, 1, 2]
    for index, sequence in sequences:
        assert response.sequences[index] == sequence
        assert sequence.stop_reason == StopReason.STOP_REASON_LENGTH
        assert len(tokens_from_bytes(sequence.tokens)) == 7
        assert len(floats_from_bytes(sequence.logprobs)) == 7
        assert (sequence.topk_sampled_logprobs.k, sequence.topk_sampled_logprobs.length) == (2, 7)
    [told] = prompts
    assert len(told.sequences) == 0
    del response.sequences[:]
    assert response == told

    logprobs = floats_from_bytes(told.prompt_logprobs)
    assert np.isnan(logprobs[0])
    scored = await score(backend, prompt, base_model=BASE)
    np.testing.assert_allclose(logprobs[1:], scored[1:], atol=1e-4)
    table = told.topk_prompt_logprobs
    assert (table.k, table.length) == (4, 5)
    ids = tokens_from_bytes(table.token_ids).reshape(5, 4)
    values = floats_from_bytes(table.logprobs).reshape(5, 4)
    assert ids[0].tolist() == [0] * 4
    assert (values[0] == -99999.0).all()
    assert (np.diff(values[1:], axis=1) <= 0).all()
    answered = array_from_tensor(told.target_prompt_logprobs)
    assert answered.shape == targets.shape
    assert (answered[targets < 0] == 0).all()
    assert (answered[targets >= 0] < 0).all()
    assert array_from_tensor(told.prompt_alt_tokens.tokens).shape == (4, 3)
    assert (array_from_tensor(told.prompt_alt_tokens.logprobs) <= 0).all()


async def test_target_logprobs_come_in_the_layout_they_were_asked_in(
    backend: LocalBackend,
) -> None:
    dense = np.array([[-1, 7], [-1, -1], [3, 2]])
    sparse = Tensor(
        sparse_csr=SparseCsr(
            values=np.array([7, 3, 2]).tobytes(),
            crow_indices=np.array([0, 1, 1, 3]).tobytes(),
            col_indices=np.array([1, 0, 1]).tobytes(),
        ),
        dtype=tensor_from_array(dense).dtype,
        shape=[3, 2],
    )
    answers = []
    for asked in (tensor_from_array(dense), sparse):
        response = await sample(
            backend,
            base_model=BASE,
            prompt=ModelInput(chunks=chunks([1, 2, 3, 4])),
            sampling_params=drawing(1),
            target_prompt_logprobs=asked,
        )
        answers.append(response.target_prompt_logprobs)
    assert answers[1].sparse_csr.crow_indices == sparse.sparse_csr.crow_indices
    assert answers[1].sparse_csr.col_indices == sparse.sparse_csr.col_indices
    assert len(answers[1].sparse_csr.values) == 3 * 4
    np.testing.assert_array_equal(array_from_tensor(answers[1]), array_from_tensor(answers[0]))


async def test_scores_are_ragged_and_may_hold_the_likeliest(backend: LocalBackend) -> None:
    arrays = [np.arange(n, dtype=np.int64) for n in (3, 1, 6)]
    request = ScoreRequest(
        base_model=BASE, tokens=batched_from_arrays(arrays), temperature=0.5, topk=3
    )
    response = await backend.score(request)
    for index, array in enumerate(arrays):
        logprobs = arrays_from_batched(response.logprobs)[index]
        ids = arrays_from_batched(response.topk_tokens)[index]
        values = arrays_from_batched(response.topk_logprobs)[index]
        assert logprobs.shape == array.shape
        assert ids.dtype == np.int32
        assert ids.shape == values.shape == (len(array), 3)
        assert np.isnan(logprobs[0])
        assert (values[0] == -99999.0).all()
        assert (ids[0] == 0).all()
        assert (values[1:, 0] >= logprobs[1:]).all()
        assert (np.diff(values, axis=1) <= 0).all()


async def test_a_cancelled_sample_stops_the_work(backend: LocalBackend) -> None:
    told = asyncio.Event()
    request = SampleRequest(
        base_model=BASE,
        prompt=ModelInput(chunks=chunks([1])),
        sampling_params=drawing(500),
        prompt_logprobs=True,
    )
    task = asyncio.create_task(backend.sample(request, SampleEvents(lambda _: told.set(), ignore)))
    await told.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    sampler = (await asyncio.wrap_future(backend._engine.bases.load(BASE))).sampler
    # A later call is drawn when the lane has let go of the first.
    await sample(
        backend, base_model=BASE, prompt=ModelInput(chunks=chunks([1])), sampling_params=drawing(1)
    )
    assert sampler._calls == {}
    assert sampler._sequences == []
