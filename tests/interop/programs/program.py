"""What every program shares: how it is told what to do, how it tells what it saw, and how plain
lists become the SDK's types.

A program runs in the environment of one SDK, as that SDK's users would write it, and knows the
gateway by TINKER_BASE_URL and TINKER_API_KEY alone. It prints one line of JSON for each thing seen;
the tests read them.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tinker
from interop_examples import LEARNING_RATE, RANK, SEED, Example
from tinker import types

VERSION = tuple(int(part) for part in tinker.__version__.split("."))
ARGUMENTS: dict[str, Any] = json.loads(os.environ["INTEROP_ARGUMENTS"])
BASE_MODEL: str = ARGUMENTS["base_model"]
ADAM = types.AdamParams(learning_rate=LEARNING_RATE)


def tell(what: str, **values: Any) -> None:
    """Print what was seen. Numbers keep every bit."""
    print(json.dumps({"what": what, **values}), flush=True)


def main(program: Callable[[], None]) -> None:
    """Run a program to its end; a failure ends it with the traceback, at once."""
    try:
        program()
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Background threads of the SDK are no reason to stay.
    os._exit(status)


def result(pending: Any) -> Any:
    """The value of a future; of what is no future, itself. The same call gives a client in one
    version of the SDK and a future of one in another."""
    return pending.result() if hasattr(pending, "result") else pending


def new_model(service: tinker.ServiceClient, **options: Any) -> Any:
    """A LoRA model as the tests' reference makes it too."""
    options = {"rank": RANK, "seed": SEED, **options}
    return result(service.create_lora_training_client(base_model=BASE_MODEL, **options))


def datum(example: Example) -> types.Datum:
    """An example as the SDK takes it."""
    inputs = {"target_tokens": tensor(example.targets, "int64")}
    for name, values in example.floats.items():
        inputs[name] = tensor(values, "float32")
    return types.Datum(
        model_input=types.ModelInput.from_ints(example.tokens), loss_fn_inputs=inputs
    )


def data(examples: Iterable[Example]) -> list[types.Datum]:
    """Examples as the SDK takes them."""
    return [datum(example) for example in examples]


def tensor(values: Sequence[Any], dtype: Any) -> types.TensorData:
    """A list, or a list of lists, with its shape."""
    if values and isinstance(values[0], list):
        flat = [entry for row in values for entry in row]
        return types.TensorData(data=flat, dtype=dtype, shape=[len(values), len(values[0])])
    return types.TensorData(data=list(values), dtype=dtype, shape=[len(values)])


def logprobs(output: types.ForwardBackwardOutput) -> list[list[float]]:
    """The logprobs of each datum, flat."""
    return [[float(x) for x in entry["logprobs"].data] for entry in output.loss_fn_outputs]


def digest(rows: Iterable[Sequence[float]]) -> str:
    """SHA-256 of the numbers as float32, row after row."""
    state = hashlib.sha256()
    for row in rows:
        state.update(struct.pack(f"<{len(row)}f", *row))
    return state.hexdigest()


def tell_output(what: str, output: types.ForwardBackwardOutput, **values: Any) -> None:
    """Tell the whole of a training result."""
    tell(what, logprobs=logprobs(output), metrics=dict(output.metrics), **values)


def failure(call: Callable[[], Any]) -> dict[str, Any]:
    """How a call fails: the exception's type, message, status code and category. Fails itself if
    the call does not."""
    try:
        value = result(call())
    except Exception as error:
        category = getattr(error, "category", None)
        return {
            "type": type(error).__name__,
            "message": str(error),
            "status": getattr(error, "status_code", None),
            "category": getattr(category, "value", category),
        }
    raise AssertionError(f"the call should have failed; it gave {value!r}")
