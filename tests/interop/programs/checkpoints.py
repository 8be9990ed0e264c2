"""Save, load and resume, with the optimizer's state and without."""

from __future__ import annotations

from typing import Any

import tinker
from interop_examples import supervised
from program import ADAM, VERSION, data, failure, main, new_model, result, tell, tell_output

EXAMPLES = supervised(4, seed=3)


def train(model: Any, steps: int) -> None:
    """Take steps, all submitted at once."""
    examples = data(EXAMPLES)
    pending = [
        (model.forward_backward(examples, "cross_entropy"), model.optim_step(ADAM))
        for _ in range(steps)
    ]
    for backward, step in pending:
        backward.result()
        step.result()


def tell_state(what: str, model: Any) -> None:
    """Tell the logprobs, which every weight has a part in."""
    tell_output(what, model.forward(data(EXAMPLES), "cross_entropy").result())


def program() -> None:
    service = tinker.ServiceClient()
    model = new_model(service)
    train(model, 2)
    path = model.save_state("middle", ttl_seconds=7200).result().path
    tell("saved", path=path, model_id=model.model_id)
    tell_state("middle", model)
    train(model, 2)
    tell_state("uninterrupted", model)
    tell("taken name", failure=failure(lambda: model.save_state("middle")))
    overwritten = model.save_state("middle-2", overwrite=True).result().path
    tell(
        "overwritten",
        same=model.save_state("middle-2", overwrite=True).result().path == overwritten,
    )

    resumed = result(service.create_training_client_from_state_with_optimizer(path))
    tell("resumed id", model_id=resumed.model_id, rank=resumed.get_info().lora_rank)
    tell_state("resumed, before", resumed)
    train(resumed, 2)
    tell_state("resumed", resumed)

    anew = result(service.create_training_client_from_state(path, user_metadata={"from": "state"}))
    tell_state("weights only, before", anew)
    train(anew, 2)
    tell_state("weights only", anew)

    other = new_model(service, seed=99)
    tell_state("other", other)
    other.load_state_with_optimizer(path).result()
    tell_state("loaded with optimizer, before", other)
    train(other, 2)
    tell_state("loaded with optimizer", other)
    other.load_state(path).result()
    train(other, 2)
    tell_state("loaded", other)

    rest = service.create_rest_client()
    weights = rest.get_weights_info_by_tinker_path(path).result()
    tell("weights info", base_model=weights.base_model, lora_rank=weights.lora_rank)
    missing = path.replace("middle", "missing")
    tell("missing", failure=failure(lambda: other.load_state(missing)))
    # What failed took its turn, and the model goes on.
    tell_state("after a failed load", other)
    if VERSION >= (0, 38):
        noted = model.save_state("noted", user_metadata={"note": "kept"}).result().path
        listed = rest.list_checkpoints(model.model_id).result().checkpoints
        found = {entry.tinker_path: entry.user_metadata for entry in listed}
        tell("metadata", user_metadata=found[noted])


if __name__ == "__main__":
    main(program)
