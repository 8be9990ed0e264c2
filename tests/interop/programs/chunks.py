"""2,500 datums in one call: three chunks, which the SDK posts in an order of its own."""

from __future__ import annotations

import tinker
from interop_examples import supervised
from program import ADAM, ARGUMENTS, data, digest, logprobs, main, new_model, tell

COUNT = 2500


def program() -> None:
    service = tinker.ServiceClient()
    model = new_model(service)
    examples = data(supervised(ARGUMENTS.get("count", COUNT), shortest=2, longest=5))
    backward = model.forward_backward(examples, "cross_entropy")
    step = model.optim_step(ADAM)
    forward = model.forward(examples, "cross_entropy")
    for what, pending in (("backward", backward), ("forward", forward)):
        output = pending.result()
        rows = logprobs(output)
        tell(
            what,
            count=len(rows),
            lengths=[len(row) for row in rows] == [len(e.model_input.to_ints()) for e in examples],
            first=rows[0],
            last=rows[-1],
            digest=digest(rows),
            metrics=dict(output.metrics),
        )
    tell("step", optimizer=dict(step.result().metrics or {}))


if __name__ == "__main__":
    main(program)
