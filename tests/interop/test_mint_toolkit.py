"""mindlab-toolkit with an `sk-` key, against the door as it is and as MinT is today."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import interop_reference
import numpy as np
import pytest
from interop_examples import PROMPT, supervised
from interop_sdk import KEY, MINT_KEY, MINT_TOOLKIT, NEWEST, Sdk, of, one

from tinkergate_client import connect, reverse_kl_datum

COEFFICIENTS = [0.25, 0.75]


@pytest.fixture(scope="module")
def profiles(start_door: Any) -> Callable[[str], Any]:
    """Gateways by profile that know an `sk-` key."""
    return cache(lambda profile: start_door("--profile", profile, keys=f"{KEY},{MINT_KEY}"))


@pytest.fixture
def door_of(profiles: Callable[[str], Any], chains: Callable[[str], Any]) -> Callable[[str], Any]:
    """A gateway of a profile, or the chain with MinT behind it."""

    def door(which: str) -> Any:
        chain = chains("mint")
        if which == "chain":
            return chain
        gateway = profiles(which)
        return chain._replace(grpc=gateway.address, http=gateway.http_address)

    return door


@pytest.mark.parametrize("which", ["full", "mint", "chain"])
def test_the_toolkit(
    which: str, door_of: Callable[[str], Any], make_sdk: Callable[..., Sdk]
) -> None:
    door = door_of(which)
    seen = make_sdk(MINT_TOOLKIT, door, MINT_KEY).run("mint_toolkit")
    paths = one(seen, "saved")["paths"]
    mixed = one(seen, "interpolated")
    assert mixed["sources"] == paths
    assert mixed["coefficients"] == COEFFICIENTS
    assert mixed["type"] == "sampler"
    scores = {line["path"]: line["logprobs"] for line in of(seen, "scores")}
    assert set(scores) == {*paths, mixed["path"]}
    assert len({str(row) for row in scores.values()}) == 3

    with connect(door.grpc, api_key=KEY) as client:
        for path, row in scores.items():
            (score,) = client.score([PROMPT], model_path=path)
            assert row[0] is None
            # Prompts of samples are read in other stretches than texts that are scored, which on
            # some processors changes the last bit.
            np.testing.assert_allclose(row[1:], score.logprobs[1:], rtol=1e-6, err_msg=path)
        # The same training by gRPC.
        with client.create_session() as session:
            model = interop_reference.new_model(session, door.base_model)
            for told in of(seen, "step"):
                result = model.forward_backward(interop_reference.data(supervised(4))).result()
                assert told["logprobs"] == interop_reference.rows(result)
                interop_reference.step(model)
            items = [
                reverse_kl_datum(text, [0.0, *example.floats["weights"]], text)
                for example in supervised(4)
                for text in ([*example.tokens, example.targets[-1]],)
            ]
            for told in of(seen, "reverse KL"):
                result = model.forward_backward_reverse_kl(
                    items, told["reference"], temperature=1.5
                ).result()
                # JSON has the shortest text that is read as the same float32.
                losses = np.float32([np.ravel(loss) for loss in told["losses"]])
                assert (losses == [output["loss"] for output in result.outputs]).all()
                assert told["metrics"] == dict(result.metrics)
            interop_reference.step(model)
            after = model.forward(interop_reference.data(supervised(4))).result()
            assert one(seen, "after")["logprobs"] == interop_reference.rows(after)

    first, second = of(seen, "reverse KL")
    assert [first["reference"], second["reference"]] == paths
    examples = supervised(4)
    for told in (first, second):
        assert len(told["losses"]) == len(examples)
        assert all(np.isfinite(np.ravel(loss)).all() for loss in told["losses"])
    # The model is what the second path holds, so it does not diverge from it, but from the first.
    assert np.allclose([np.sum(loss) for loss in second["losses"]], 0.0, atol=1e-4)
    assert all(np.sum(loss) > 1e-3 for loss in first["losses"])
    steps = of(seen, "step")
    assert one(seen, "after")["logprobs"] != steps[-1]["logprobs"]


@pytest.mark.parametrize("which", ["full", "mint"])
def test_mint_has_no_console_yet(which: str, door_of: Callable[[str], Any], make_sdk: Any) -> None:
    """The planned routes are 404 in the profile "mint", whose keys are `sk-` keys only."""
    door = door_of(which)
    seen = make_sdk(MINT_TOOLKIT, door, MINT_KEY).run("planned")
    failures = {line["method"]: line["status"] for line in of(seen, "planned")}
    is_mint = which == "mint"
    assert set(failures.values()) == {404 if is_mint else None}
    done = make_sdk(NEWEST, door, KEY).command("--format", "json", "model", "list")
    assert (done.returncode == 0) == (not is_mint), done.stdout + done.stderr
