"""What is refused, and how a program learns of it: at once, in words, never as "still starting"."""

from __future__ import annotations

import time
from typing import Any

import httpx
from baseten.loops import ServiceClient
from baseten.loops.models import Datum, ModelInput, TensorData
from interop_examples import supervised
from program import ADAM, ARGUMENTS, SUMS, data, failure, main, new_client, tell


def program() -> None:
    tell("key", **failure(lambda: ServiceClient(api_key="not-a-key")))
    tell("team", **failure(lambda: ServiceClient(team="no such team")))
    service = ServiceClient(team="default")
    tell("base model", **failure(lambda: service.create_lora_training_client("no-such-model")))
    too_long = {"max_seq_len": 100_000}
    tell("max_seq_len", **failure(lambda: new_client(service, **too_long)))
    custom = {"base_checkpoint": "hf://org/repo"}
    tell("base_checkpoint", **failure(lambda: new_client(service, **custom)))
    client = new_client(service, max_seq_len=32, replicas=2, with_sampler=True)
    examples = data(supervised(3))
    wrong = Datum(
        model_input=ModelInput.from_ints([1, 2, 3]),
        loss_fn_inputs={"target_tokens": TensorData.from_list([2, 3], dtype="int64")},
    )
    outside = Datum(
        model_input=ModelInput.from_ints([1, 2]),
        loss_fn_inputs={"target_tokens": TensorData.from_list([2, 5000], dtype="int64")},
    )
    longer = data(supervised(1, seed=5, shortest=40, longest=40))
    calls: dict[str, Any] = {
        "loss": lambda: client.forward_backward(examples, "no_such_loss"),
        "setting": lambda: client.forward_backward(examples, "ppo", {"epsilon": 0.1}),
        "shape": lambda: client.forward_backward([wrong]),
        "token": lambda: client.forward_backward([outside]),
        "long": lambda: client.forward_backward(longer),
        "empty": lambda: client.forward_backward([]),
        "top_k": lambda: client.forward_backward(examples, top_k_logprobs=3),
    }
    began = time.monotonic()
    for name, call in calls.items():
        tell(name, **failure(call))
    tell("step", optimizer=client.optim_step(ADAM).result().metrics)
    # What was refused has left nothing behind, and has held nothing up.
    output = client.forward_backward(examples, "cross_entropy", SUMS).result()
    tell("after", loss=output.loss, seconds=time.monotonic() - began)
    raw(client)


def raw(client: Any) -> None:
    """What the SDK never sends."""
    url = client._base_url
    headers = {"authorization": f"Bearer {ARGUMENTS['key']}"}
    for name, more in (
        ("no run", {}),
        ("another run", {"x-run-id": f"{client.run_id}0"}),
        ("the run", {"x-run-id": client.run_id}),
    ):
        answer = httpx.get(f"{url}/operations/unknown", headers=headers | more, timeout=60)
        tell(
            name,
            status=answer.status_code,
            source=answer.headers.get("x-baseten-error-source"),
            code=answer.headers.get("x-baseten-error-code"),
            reason=answer.json()["details"]["reason"],
        )


if __name__ == "__main__":
    main(program)
