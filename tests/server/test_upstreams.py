"""One gateway in front of others: its backends "tinker", "mint" and "loops" are gateway processes
of their own, and its embedded engine works beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tinkergate_client import connect, supervised_datum

TOKENS = [5, 60, 7, 80, 9, 100]
DATA = [supervised_datum(TOKENS, [0, 1, 1, 1, 1, 1])]


@pytest.fixture
def front(start_gateway: Any, tmp_path: Path, micro_model_dir: Path) -> Any:
    """A gateway whose three backends have the same base model, under names of their own."""
    alias = ("--alias", f"base={micro_model_dir}")
    tinker = start_gateway("--http", "127.0.0.1:0", *alias)
    mint = start_gateway("--http", "127.0.0.1:0", "--profile", "mint", *alias)
    file = tmp_path / "gateway.toml"
    file.write_text(
        """
        [models.here]
        backend = "local"
        name = "micro"
        [models."labs/far"]
        backend = "tinker"
        name = "base"
        [models."labs/minted"]
        backend = "mint"
        name = "base"
        """
    )
    environment = {
        "TINKER_API_KEY": "tml-any",
        "TINKER_BASE_URL": f"http://{tinker.http_address}",
        "MINT_API_KEY": "sk-any",
        "MINT_BASE_URL": f"http://{mint.http_address}",
    }
    return start_gateway("--config", str(file), environment=environment)


def test_the_same_program_on_three_backends_interleaved(front: Any) -> None:
    with connect(front.address) as client, client.create_session() as session:
        told = {each.name: each.unavailable for each in client.capabilities().backends}
        assert told == {"local": "", "mint": "", "tinker": ""}, front.log()
        names = ("here", "labs/far", "labs/minted")
        models = {name: session.create_model(name, rank=4, seed=1) for name in names}
        backends = {name: model.info().backend for name, model in models.items()}
        assert backends == {"here": "local", "labs/far": "tinker", "labs/minted": "mint"}
        assert {model.info().base_model for model in models.values()} == set(names)

        losses: dict[str, list[Any]] = {name: [] for name in names}
        for _ in range(3):
            for name, model in models.items():
                losses[name].append(model.forward_backward(DATA))
                model.optim_step(learning_rate=1e-2)
        trained = {name: [each.result().loss for each in losses[name]] for name in names}
        assert trained["labs/far"] == trained["labs/minted"] == trained["here"]
        assert trained["here"][0] > trained["here"][2]

        drawn, scored = {}, {}
        for name, model in models.items():
            sampler = model.save_weights_for_sampler("end").result()
            sampled = sampler.sample(TOKENS[:3], max_tokens=8, seed=5)
            drawn[name] = [list(each.tokens) for each in sampled.sequences]
            scored[name] = sampler.score([TOKENS])[0].logprobs[1:].tolist()
        assert drawn["labs/far"] == drawn["labs/minted"] == drawn["here"]
        # There prompts are read to sample from, here texts to score: in other batches.
        assert (
            scored["labs/far"] == scored["labs/minted"] == pytest.approx(scored["here"], rel=1e-5)
        )

        # A base model goes to the backend that its name belongs to, too.
        plain = [client.score([TOKENS], base_model=name)[0].logprobs[1:].tolist() for name in names]
        assert plain[1] == plain[2] == pytest.approx(plain[0], rel=1e-5)
        assert plain[0] != pytest.approx(scored["here"], rel=1e-2)


@pytest.mark.parametrize("capacity", ["serverless", "dedicated"])
def test_the_same_program_on_loops(
    capacity: str, start_gateway: Any, tmp_path: Path, micro_model_dir: Path
) -> None:
    alias = ("--alias", f"base={micro_model_dir}")
    loops = start_gateway("--http", "127.0.0.1:0", "--loops-capacity", capacity, *alias)
    file = tmp_path / "gateway.toml"
    file.write_text(
        """
        [models.here]
        backend = "local"
        name = "micro"
        [models."labs/far"]
        backend = "loops"
        name = "base"
        """
    )
    environment = {
        "BASETEN_API_KEY": "any",
        "LOOPS_BASE_URL": f"http://{loops.http_address}",
    }
    front = start_gateway("--config", str(file), environment=environment)
    names = ("here", "labs/far")
    with connect(front.address) as client, client.create_session() as session:
        told = {each.name: each.unavailable for each in client.capabilities().backends}
        assert told == {"local": "", "loops": ""}, front.log()
        trained, drawn, scored, adapters = {}, {}, {}, {}
        for name in names:
            model = session.create_model(
                name, rank=4, seed=1, train_unembed=False, exact_adapter=True
            )
            losses = []
            for _ in range(3):
                losses.append(model.forward_backward(DATA))
                model.optim_step(learning_rate=1e-2)
            half = model.save_state("half").result()
            resumed = session.create_model_from_checkpoint(half, with_optimizer=True)
            for _ in range(2):
                losses.append(resumed.forward_backward(DATA))
                resumed.optim_step(learning_rate=1e-2)
            trained[name] = [each.result().loss for each in losses]
            sampler = resumed.save_weights_for_sampler().result()
            sampled = sampler.sample(TOKENS[:3], max_tokens=8, temperature=0.0)
            drawn[name] = [list(each.tokens) for each in sampled.sequences]
            scored[name] = sampler.score([TOKENS])[0].logprobs[1:].tolist()
            saved = resumed.save_weights_for_sampler("end").result()
            folder = tmp_path / name.replace("/", "-")
            client.checkpoints.download(saved.model_path, folder)
            adapters[name] = (folder / "adapter_model.safetensors").read_bytes()
        assert trained["labs/far"] == pytest.approx(trained["here"], rel=1e-6)
        assert trained["here"][0] > trained["here"][4]
        assert drawn["labs/far"] == drawn["here"]
        assert scored["labs/far"] == pytest.approx(scored["here"], rel=1e-5)
        assert adapters["labs/far"] == adapters["here"]


def test_a_service_that_comes_later_is_taken_up(
    start_gateway: Any, tmp_path: Path, micro_model_dir: Path
) -> None:
    first = start_gateway("--http", "127.0.0.1:0", engine=False)
    address = first.http_address
    assert first.stop() == 0
    environment = {"TINKER_API_KEY": "tml-any", "TINKER_BASE_URL": f"http://{address}"}
    front = start_gateway(engine=False, environment=environment)
    with connect(front.address) as client, client.create_session() as session:
        (listed,) = client.capabilities().backends
        assert listed.name == "tinker"
        assert listed.unavailable
        start_gateway("--http", address, "--alias", f"late={micro_model_dir}")
        # The client tries again for as long as the gateway says that it may be worth it.
        model = session.create_model("late", rank=4, seed=1)
        assert model.forward_backward(DATA).result().loss > 0
        assert client.capabilities().backends[0].unavailable == ""
