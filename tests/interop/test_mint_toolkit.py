"""mindlab-toolkit with an `sk-` key, against the door as it is and as MinT is today."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import interop_reference
import numpy as np
import pytest
from interop_examples import PROMPT, supervised
from interop_sdk import KEY, MINT_KEY, MINT_TOOLKIT, NEWEST, Sdk, of, one

from tinkergate_client import connect

COEFFICIENTS = [0.25, 0.75]


@pytest.fixture(scope="module", params=["full", "mint"])
def mint_door(request: pytest.FixtureRequest, start_door: Any) -> Any:
    """A gateway of each profile that knows an `sk-` key."""
    return start_door("--profile", request.param, keys=f"{KEY},{MINT_KEY}")


def test_the_toolkit(
    mint_door: Any, micro_model_dir: Any, make_sdk: Callable[..., Sdk], direct: Any
) -> None:
    door = direct._replace(grpc=mint_door.address, http=mint_door.http_address)
    seen = make_sdk(MINT_TOOLKIT, door, MINT_KEY).run("mint_toolkit")
    paths = one(seen, "saved")["paths"]
    mixed = one(seen, "interpolated")
    assert mixed["sources"] == paths
    assert mixed["coefficients"] == COEFFICIENTS
    assert mixed["type"] == "sampler"
    scores = {line["path"]: line["logprobs"] for line in of(seen, "scores")}
    assert set(scores) == {*paths, mixed["path"]}
    assert len({str(row) for row in scores.values()}) == 3

    with connect(mint_door.address, api_key=KEY) as client:
        for path, row in scores.items():
            (score,) = client.score([PROMPT], model_path=path)
            assert row[0] is None
            assert row[1:] == score.logprobs[1:].tolist(), path
        # The same training by gRPC.
        with client.create_session() as session:
            model = interop_reference.new_model(session, direct.base_model)
            for told in of(seen, "step"):
                result = model.forward_backward(interop_reference.data(supervised(4))).result()
                assert told["logprobs"] == interop_reference.rows(result)
                interop_reference.step(model)

    first, second = of(seen, "reverse KL")
    assert first["reference"], second["reference"] == paths
    examples = supervised(4)
    for told in (first, second):
        assert len(told["losses"]) == len(examples)
        assert all(np.isfinite(np.ravel(loss)).all() for loss in told["losses"])
    # The model is what the second path holds, so it does not diverge from it, but from the first.
    assert np.allclose([np.sum(loss) for loss in second["losses"]], 0.0, atol=1e-4)
    assert all(np.sum(loss) > 1e-3 for loss in first["losses"])
    steps = of(seen, "step")
    assert one(seen, "after")["logprobs"] != steps[-1]["logprobs"]


def test_mint_has_no_console_yet(mint_door: Any, direct: Any, make_sdk: Any) -> None:
    """The planned routes are 404 in the profile "mint", whose keys are `sk-` keys only."""
    door = direct._replace(grpc=mint_door.address, http=mint_door.http_address)
    seen = make_sdk(MINT_TOOLKIT, door, MINT_KEY).run("planned")
    failures = {line["method"]: line["status"] for line in of(seen, "planned")}
    is_mint = any(part == "mint" for part in mint_door.process.args)
    assert set(failures.values()) == {404 if is_mint else None}
    done = make_sdk(NEWEST, door, KEY).command("--format", "json", "model", "list")
    assert (done.returncode == 0) == (not is_mint), done.stdout + done.stderr
