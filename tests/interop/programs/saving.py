"""A trained model and a checkpoint of it, for the SDK's own command to be about."""

from __future__ import annotations

import tinker
from interop_examples import supervised
from program import ADAM, data, main, new_model, tell


def program() -> None:
    service = tinker.ServiceClient()
    model = new_model(service)
    model.forward_backward(data(supervised(3)), "cross_entropy").result()
    model.optim_step(ADAM).result()
    tell("made", model_id=model.model_id, state=model.save_state("final").result().path)


if __name__ == "__main__":
    main(program)
