"""What every program shares: how it is told what to do, how it tells what it saw, and how plain
lists become the SDK's types.

A program runs in the environment of the Loops SDK, as that SDK's users would write it, and knows
the gateway by LOOPS_BASE_URL and BASETEN_API_KEY alone. It prints one line of JSON for each thing
seen; the tests read them.
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

from baseten.loops import ServiceClient
from baseten.loops.models import AdamParams, Datum, ForwardBackwardOutput, ModelInput, TensorData
from interop_examples import LEARNING_RATE, RANK, SEED, Example

ARGUMENTS: dict[str, Any] = json.loads(os.environ["INTEROP_ARGUMENTS"])
BASE_MODEL: str = ARGUMENTS["base_model"]
DEDICATED: bool = ARGUMENTS["capacity"] == "dedicated"
ADAM = AdamParams(learning_rate=LEARNING_RATE, grad_clip_norm=0.0)
SUMS = {"skip_token_normalization": True}


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


def new_client(service: ServiceClient, **options: Any) -> Any:
    """A training client as the tests' reference makes its model too."""
    return service.create_lora_training_client(
        BASE_MODEL, **{"rank": RANK, "seed": SEED, **options}
    )


def datum(example: Example) -> Datum:
    """An example as the SDK takes it. Lists of lists stay nested, as `from_list` leaves them."""
    inputs = {"target_tokens": TensorData.from_list(example.targets, dtype="int64")}
    for name, values in example.floats.items():
        inputs[name] = TensorData.from_list(values)
    return Datum(model_input=ModelInput.from_ints(example.tokens), loss_fn_inputs=inputs)


def data(examples: Iterable[Example]) -> list[Datum]:
    """Examples as the SDK takes them."""
    return [datum(example) for example in examples]


def logprobs(output: ForwardBackwardOutput) -> list[list[float | None]]:
    """The logprobs of each datum, flat."""
    return [list(entry["logprobs"].data) for entry in output.loss_fn_outputs]


def digest(rows: Iterable[Sequence[float]]) -> str:
    """SHA-256 of the numbers as float32, row after row."""
    state = hashlib.sha256()
    for row in rows:
        state.update(struct.pack(f"<{len(row)}f", *row))
    return state.hexdigest()


def tell_output(what: str, output: ForwardBackwardOutput, **values: Any) -> None:
    """Tell the whole of a training result."""
    tell(what, logprobs=logprobs(output), loss=output.loss, metrics=output.metrics, **values)


def failure(call: Callable[[], Any]) -> dict[str, Any]:
    """How a call fails: the exception's type, message, status code and marks. Fails itself if the
    call does not."""
    try:
        value = call()
    except Exception as error:
        response = getattr(error, "response", None)
        headers = {} if response is None else dict(response.headers)
        return {
            "type": type(error).__name__,
            "message": str(error),
            "status": None if response is None else response.status_code,
            "source": headers.get("x-baseten-error-source"),
            "code": headers.get("x-baseten-error-code"),
            "error_class": getattr(error, "error_class", None),
        }
    raise AssertionError(f"the call should have failed; it gave {value!r}")
