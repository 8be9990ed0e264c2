"""Calls every public method of the SDK's four clients, found by looking at the classes, and tells
how each went. A method that this program has no call for ends it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import tinker
import torch
from interop_examples import PROMPT, supervised
from program import ADAM, BASE_MODEL, data, main, new_model, result, tell
from tinker import types
from tinker.lib.public_interfaces.rest_client import RestClient

CLIENTS = {
    "ServiceClient": tinker.ServiceClient,
    "TrainingClient": tinker.TrainingClient,
    "SamplingClient": tinker.SamplingClient,
    "RestClient": RestClient,
}
Calls = dict[str, Callable[[], Any]]


def public_methods(client: type) -> list[str]:
    """The names of the methods and properties that are for users."""
    return [name for name, _ in inspect.getmembers(client) if not name.startswith("_")]


async def awaited(value: Any) -> Any:
    """The end of what may be awaited, once or twice."""
    while inspect.isawaitable(value):
        value = await value
    return value


def outcome(call: Callable[[], Any]) -> dict[str, Any]:
    """Call and wait to the end; how it went."""
    try:
        value = call()
        if inspect.iscoroutine(value):
            asyncio.run(awaited(value))
        else:
            result(value)
    except Exception as error:
        status = getattr(error, "status_code", None)
        return {
            "served": False,
            "error": type(error).__name__,
            "status": status,
            "message": str(error),
        }
    return {"served": True}


class World:
    """A model, checkpoints and samplers for the calls to be about."""

    def __init__(self) -> None:
        self.service = tinker.ServiceClient()
        self.model = new_model(self.service)
        self.data = data(supervised(2))
        self.names = 0
        self.state = self.model.save_state("state").result().path
        self.weights = self.model.save_weights_for_sampler("weights").result().path
        self.sampler = result(self.service.create_sampling_client(model_path=self.weights))
        self.rest = self.service.create_rest_client()
        self.prompt = types.ModelInput.from_ints(PROMPT)
        self.params = types.SamplingParams(max_tokens=2, seed=1)
        self.session_id = self.model.model_id.split(":")[0]

    def name(self) -> str:
        """A name that no checkpoint has yet."""
        self.names += 1
        return f"probe-{self.names}"

    def one_more(self) -> str:
        """The path of a checkpoint that may be changed or deleted."""
        path: str = self.model.save_state(self.name()).result().path
        return path

    def one_more_id(self) -> str:
        """The id of such a checkpoint."""
        return "/".join(self.one_more().split("/")[-2:])

    def external(self) -> str:
        """The path of external weights."""
        path: str = self.model.save_weights_external(self.name()).result().path
        return path


def squares(data: list[types.Datum], rows: list[torch.Tensor]) -> tuple[Any, dict[str, float]]:
    return torch.stack([(row**2).mean() for row in rows]).sum(), {}


def per_datum(logprobs: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    return -(logprobs * weights).sum(), {}


def of_service(w: World) -> Calls:
    lora = {"base_model": BASE_MODEL, "rank": 4, "seed": 1}
    service = w.service
    return {
        "get_server_capabilities": lambda: service.get_server_capabilities(),
        "get_server_capabilities_async": lambda: service.get_server_capabilities_async(),
        "create_lora_training_client": lambda: service.create_lora_training_client(**lora),
        "create_lora_training_client_async": lambda: service.create_lora_training_client_async(
            **lora
        ),
        "create_training_client_from_state": lambda: service.create_training_client_from_state(
            w.state
        ),
        "create_training_client_from_state_async": lambda: (
            service.create_training_client_from_state_async(w.state)
        ),
        "create_training_client_from_state_with_optimizer": lambda: (
            service.create_training_client_from_state_with_optimizer(w.state)
        ),
        "create_training_client_from_state_with_optimizer_async": lambda: (
            service.create_training_client_from_state_with_optimizer_async(w.state)
        ),
        "create_sampling_client": lambda: service.create_sampling_client(base_model=BASE_MODEL),
        "create_sampling_client_async": lambda: service.create_sampling_client_async(
            model_path=w.weights
        ),
        "create_rest_client": lambda: (
            service.create_rest_client().get_training_run(w.model.model_id).result()
        ),
        "copy_weights": lambda: tinker.ServiceClient(project_id="archive").copy_weights(w.state),
        "create_custom_loss": lambda: service.create_custom_loss(
            per_datum, {"logprobs": 1, "weights": 1}
        ),
        "get_console_url": lambda: service.get_console_url(),
        "get_telemetry": lambda: service.get_telemetry(),
        "holder": lambda: service.holder,
        "close": lambda: tinker_session().close("success", "done"),
    }


def tinker_session() -> tinker.ServiceClient:
    """A session of its own, with something in it."""
    service = tinker.ServiceClient()
    result(service.create_sampling_client(base_model=BASE_MODEL))
    return service


def of_training(w: World) -> Calls:
    model = w.model
    calls: Calls = {
        "get_info": lambda: model.get_info(),
        "get_info_async": lambda: model.get_info_async(),
        "get_tokenizer": lambda: model.get_tokenizer(),
        "get_console_url": lambda: model.get_console_url(),
        "get_telemetry": lambda: model.get_telemetry(),
        "create_sampling_client": lambda: model.create_sampling_client(w.weights),
        "create_sampling_client_async": lambda: model.create_sampling_client_async(w.weights),
        "save_weights_and_get_sampling_client": lambda: (
            model.save_weights_and_get_sampling_client()
        ),
        "save_weights_and_get_sampling_client_async": lambda: (
            model.save_weights_and_get_sampling_client_async()
        ),
        "save_weights_and_get_sampling_client_submit": lambda: (
            model.save_weights_and_get_sampling_client_submit()
        ),
    }
    both: dict[str, tuple[Any, ...]] = {
        "forward": (w.data, "cross_entropy"),
        "forward_backward": (w.data, "cross_entropy"),
        "forward_backward_custom": (w.data, squares),
        "optim_step": (ADAM,),
        "load_state": (w.state,),
        "load_state_with_optimizer": (w.state,),
    }
    for name, arguments in both.items():
        for method in (name, f"{name}_async"):
            calls[method] = lambda method=method, arguments=arguments: getattr(model, method)(
                *arguments
            )
    for name in ("save_state", "save_weights_for_sampler", "save_weights_external"):
        for method in (name, f"{name}_async"):
            calls[method] = lambda method=method: getattr(model, method)(w.name())
    return calls


def of_sampling(w: World) -> Calls:
    sampler = w.sampler
    return {
        "sample": lambda: sampler.sample(w.prompt, 1, w.params),
        "sample_async": lambda: sampler.sample_async(w.prompt, 1, w.params),
        "compute_logprobs": lambda: sampler.compute_logprobs(w.prompt),
        "compute_logprobs_async": lambda: sampler.compute_logprobs_async(w.prompt),
        "get_base_model": lambda: sampler.get_base_model(),
        "get_base_model_async": lambda: sampler.get_base_model_async(),
        "get_tokenizer": lambda: sampler.get_tokenizer(),
        "get_telemetry": lambda: sampler.get_telemetry(),
        "get_sampler_handle": lambda: sampler.get_sampler_handle(),
        "from_sampler_handle": lambda: (
            tinker.SamplingClient.from_sampler_handle(sampler.get_sampler_handle())
            .compute_logprobs(w.prompt)
            .result()
        ),
        "create": lambda: tinker.SamplingClient.create(w.service.holder, model_path=w.weights),
        "on_queue_state_change": lambda: sampler.on_queue_state_change(*queue_state()),
    }


def queue_state() -> tuple[Any, ...]:
    from tinker.lib.api_future_impl import QueueState

    return QueueState.ACTIVE, None


def of_rest(w: World) -> Calls:
    rest, run = w.rest, w.model.model_id
    days = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")
    both: dict[str, Callable[[], tuple[Any, ...]]] = {
        "get_training_run": lambda: (run,),
        "get_training_run_by_tinker_path": lambda: (w.state,),
        "get_weights_info_by_tinker_path": lambda: (w.state,),
        "list_training_runs": tuple,
        "list_checkpoints": lambda: (run,),
        "list_user_checkpoints": tuple,
        "list_sessions": tuple,
        "get_session": lambda: (w.session_id,),
        "get_sampler": lambda: (w.sampler._sampling_session_id,),
        "get_server_capabilities": tuple,
        "delete_checkpoint": lambda: (run, w.one_more_id()),
        "delete_checkpoint_from_tinker_path": lambda: (w.one_more(),),
        "publish_checkpoint_from_tinker_path": lambda: (w.one_more(),),
        "unpublish_checkpoint_from_tinker_path": lambda: (published(w),),
        "set_checkpoint_ttl_from_tinker_path": lambda: (w.one_more(), 7200),
        "get_checkpoint_archive_url": lambda: (run, w.one_more_id()),
        "get_checkpoint_archive_url_from_tinker_path": lambda: (w.state,),
        "get_external_weights_urls": lambda: (w.external(),),
        "copy_weights": lambda: (w.state, "project"),
        "assign_session_project": lambda: (w.session_id, "project"),
        "export_session_trace": lambda: (w.session_id,),
        "get_audit_log": tuple,
        "get_billing_usage": lambda: days,
        "get_current_checkpoint_storage_usage": tuple,
        "search_sessions": lambda: (types.SessionSearchRequest(),),
        "whoami": tuple,
        "get_telemetry": tuple,
    }
    calls: Calls = {}
    for name, arguments in both.items():
        for method in (name, f"{name}_async"):
            calls[method] = lambda method=method, arguments=arguments: getattr(rest, method)(
                *arguments()
            )
    return calls


def published(w: World) -> str:
    path = w.one_more()
    w.rest.publish_checkpoint_from_tinker_path(path).result()
    return path


def program() -> None:
    world = World()
    calls = {
        "ServiceClient": of_service(world),
        "TrainingClient": of_training(world),
        "SamplingClient": of_sampling(world),
        "RestClient": of_rest(world),
    }
    for client, kind in CLIENTS.items():
        for method in public_methods(kind):
            if method not in calls[client]:
                raise AssertionError(f"the probe has no call for {client}.{method}")
            tell("method", name=f"{client}.{method}", **outcome(calls[client][method]))


if __name__ == "__main__":
    main(program)
