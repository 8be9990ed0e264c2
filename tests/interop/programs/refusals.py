"""What is wrong is refused with its reason, and a model goes on as if it had not been asked."""

from __future__ import annotations

from typing import Any

import tinker
from interop_examples import Example, rollouts, supervised
from program import (
    ADAM,
    ARGUMENTS,
    data,
    failure,
    main,
    new_model,
    result,
    tell,
    tell_output,
)

GOOD = supervised(3, seed=5)
SHORT = Example([1, 2, 3, 4], [2, 3, 4], {"weights": [1.0, 1.0, 1.0]})
OUTSIDE = Example([1, 2, 9999], [2, 9999, 4], {"weights": [1.0, 1.0, 1.0]})
NO_ADVANTAGES = [
    Example(entry.tokens, entry.targets, {"logprobs": entry.floats["logprobs"]})
    for entry in rollouts(2)
]


def program() -> None:
    service = tinker.ServiceClient()
    model = new_model(service)
    good = data(GOOD)
    calls: dict[str, Any] = {
        "short targets": lambda: model.forward_backward(data([SHORT]), "cross_entropy"),
        "token outside": lambda: model.forward_backward(data([OUTSIDE]), "cross_entropy"),
        "missing input": lambda: model.forward_backward(data(NO_ADVANTAGES), "ppo"),
        "unknown loss": lambda: model.forward_backward(good, "hinge"),
        "unknown setting": lambda: model.forward_backward(good, "cross_entropy", {"sharp": 1.0}),
        "unknown path": lambda: model.load_state("tinker://nobody:train:0/weights/none"),
    }
    for name, call in calls.items():
        tell("refused", case=name, failure=failure(call))
    # One that fails among others that are all submitted before: only it fails.
    before = model.forward_backward(good, "cross_entropy")
    wrong = model.forward_backward(data([SHORT]), "cross_entropy")
    step = model.optim_step(ADAM)
    after = model.forward(good, "cross_entropy")
    tell("refused", case="in the middle", failure=failure(lambda: wrong))
    tell_output("before", before.result())
    step.result()
    tell_output("after", after.result())

    tell("refused", case="unknown model", failure=failure(lambda: unknown_model(service)))
    missing = "tinker://nobody:train:0/sampler_weights/none"
    tell("refused", case="unknown weights", failure=failure(lambda: sample(service, missing)))
    if wrong_key := ARGUMENTS.get("wrong_key"):
        tell("refused", case="wrong key", failure=failure(lambda: stranger(wrong_key)))


def unknown_model(service: tinker.ServiceClient) -> Any:
    return result(service.create_lora_training_client(base_model="nobody/none", rank=8))


def sample(service: tinker.ServiceClient, path: str) -> Any:
    from interop_examples import PROMPT
    from tinker import types

    sampler = result(service.create_sampling_client(model_path=path))
    return sampler.compute_logprobs(types.ModelInput.from_ints(PROMPT))


def stranger(key: str) -> Any:
    return tinker.ServiceClient(api_key=key).get_server_capabilities()


if __name__ == "__main__":
    main(program)
