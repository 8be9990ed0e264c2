"""More than 24 MiB in one call: several requests, which the SDK posts at once."""

from __future__ import annotations

from baseten.loops import ServiceClient
from interop_examples import long_soft_targets
from program import ADAM, SUMS, data, digest, logprobs, main, new_client, tell


def program() -> None:
    client = new_client(ServiceClient())
    examples = data(long_soft_targets())
    backward = client.forward_backward(examples, "cross_entropy", SUMS)
    step = client.optim_step(ADAM)
    forward = client.forward(examples[:4], "cross_entropy", SUMS)
    output = backward.result()
    rows = logprobs(output)
    tell(
        "backward",
        count=len(rows),
        shapes=[entry["logprobs"].shape for entry in output.loss_fn_outputs],
        digest=digest(rows),
        loss=output.loss,
        metrics=output.metrics,
    )
    tell("step", optimizer=step.result().metrics)
    tell("forward", loss=forward.result().loss)


if __name__ == "__main__":
    main(program)
