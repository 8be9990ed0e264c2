"""mindlab-toolkit, as its users import it, with its two routes of its own."""

from __future__ import annotations

import mint as tinker_of_mint
from interop_examples import PROMPT, supervised
from mint import mint as mintx
from mint import tinker
from program import ADAM, ARGUMENTS, data, logprobs, main, new_model, result, tell, tensor
from tinker import types

COEFFICIENTS = [0.25, 0.75]


def program() -> None:
    service = tinker_of_mint.ServiceClient()
    assert isinstance(service, tinker.ServiceClient)
    model = new_model(service)
    examples = supervised(4)
    inputs = data(examples)
    paths = []
    for name in ("first", "second"):
        backward = model.forward_backward(inputs, "cross_entropy")
        step = model.optim_step(ADAM)
        tell("step", logprobs=logprobs(backward.result()))
        step.result()
        paths.append(model.save_weights_for_sampler(name).result().path)
    tell("saved", paths=paths)

    mixed = mintx.interpolate_checkpoints(
        service, source_paths=paths, coefficients=COEFFICIENTS, output_path=None
    )
    tell(
        "interpolated",
        path=mixed.path,
        sources=mixed.source_paths,
        coefficients=mixed.coefficients,
        type=mixed.checkpoint_type,
    )
    prompt = types.ModelInput.from_ints(PROMPT)
    for path in [*paths, mixed.path]:
        sampler = result(service.create_sampling_client(model_path=path))
        tell("scores", path=path, logprobs=sampler.compute_logprobs(prompt).result())

    items = [
        mintx.ReverseKLDatum(
            student_input=types.ModelInput.from_ints(example.tokens),
            reference_input=types.ModelInput.from_ints([5, *example.tokens]),
            target_tokens=tensor(example.targets, "int64"),
            weights=tensor(example.floats["weights"], "float32"),
        )
        for example in examples
    ]
    if not ARGUMENTS.get("longer_reference"):
        for item, example in zip(items, examples, strict=True):
            item.reference_input = types.ModelInput.from_ints(example.tokens)
    for reference in (paths[0], paths[1]):
        answer = mintx.forward_backward_reverse_kl(
            model, reference_model_path=reference, data=items, temperature=1.5
        )
        tell(
            "reverse KL",
            reference=reference,
            losses=[output.loss.data for output in answer.outputs],
            metrics=answer.metrics,
        )
    model.optim_step(ADAM).result()
    tell("after", logprobs=logprobs(model.forward(inputs, "cross_entropy").result()))


if __name__ == "__main__":
    main(program)
