"""Training one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal, TypeVar

from tinkergate.v1 import (
    AdamParams,
    ConfigValue,
    Datum,
    ForwardBackwardRequest,
    ForwardBackwardReverseKlRequest,
    ForwardRequest,
    GetModelRequest,
    LoadStateRequest,
    Model,
    Normalization,
    Operation,
    OptimizerParams,
    OptimStepRequest,
    ReverseKlDatum,
    SaveStateRequest,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
    UnloadModelRequest,
    VlaDatum,
    VlaTrainStepRequest,
)
from tinkergate_client._checkpoints import duration
from tinkergate_client._chunking import split
from tinkergate_client._connection import Connection
from tinkergate_client._futures import OperationFuture
from tinkergate_client._results import (
    ForwardBackwardResult,
    OptimStepResult,
    read_forward_backward,
    read_optim_step,
)
from tinkergate_client._sampling import Sampler
from tinkergate_client._scoring import Source
from tinkergate_client._submission import Request, Rpc, Submitter

Result = TypeVar("Result")
LossConfig = Mapping[str, float | str]
_NORMALIZATIONS = {
    "sum": Normalization.NORMALIZATION_SUM,
    "per_token": Normalization.NORMALIZATION_PER_TOKEN,
}


class TrainingModel:
    """A LoRA adapter in training. Safe to use from many threads.

    Every method sends its work off and returns a future at once. The gateway does the work of a
    model strictly in the order of the calls, so submit `forward_backward` and `optim_step` without
    waiting in between, and ask for the results afterwards. Work that fails releases the next.
    A request that the gateway rejects changes nothing; its error is the future's.
    """

    def __init__(
        self,
        connection: Connection,
        model_id: str,
        next_seq_id: int,
        take_sampler_id: Callable[[], int],
    ) -> None:
        self._connection = connection
        self._stub = connection.training
        self._submitter = Submitter(connection, model_id, next_seq_id)
        self._take_sampler_id = take_sampler_id
        self.model_id = model_id
        """The model's id, which is also that of its training run."""

    def info(self) -> Model:
        """The model as the gateway knows it. Raises TinkergateError."""
        request = GetModelRequest(model_id=self.model_id)
        return self._connection.call(self._connection.models.GetModel, request).model

    def forward(
        self,
        data: Sequence[Datum],
        loss_fn: str = "cross_entropy",
        config: LossConfig | None = None,
    ) -> OperationFuture[ForwardBackwardResult]:
        """Compute logprobs and the loss, and no gradient. See `forward_backward`."""
        requests = [
            ForwardRequest(
                model_id=self.model_id,
                data=chunk,
                loss_fn=loss_fn,
                loss_fn_config=_config(config),
            )
            for chunk in self._chunks(data, loss_fn)
        ]
        return self._submit(self._stub.Forward, requests, read_forward_backward)

    def forward_backward(
        self,
        data: Sequence[Datum],
        loss_fn: str = "cross_entropy",
        config: LossConfig | None = None,
        *,
        normalization: Literal["sum", "per_token"] = "sum",
        native_loss_only: bool = False,
    ) -> OperationFuture[ForwardBackwardResult]:
        """Add the gradient of the loss to those since the last optimizer step.

        The loss is a sum over all tokens of all datums. A batch over the gateway's limits goes in
        chunks, whose results are put together again: it is accepted or rejected as a whole, but if
        the gateway fails in the middle of the work, the other chunks' gradients stay.

        Args:
            data: The examples (`datum`, `supervised_datum`). For a loss of pairs, such as "dpo",
                even ones are chosen and odd ones rejected; pairs stay together.
            loss_fn: The loss by name. `Client.capabilities` lists those that there are, with their
                inputs and settings; docs/losses.md says what they compute.
            config: The loss's settings; the others have their defaults.
            normalization: With "per_token", `optim_step` divides the gradients since the last one
                by the number of active tokens behind them, once, before it clips them. The losses
                of the results stay sums. Gradients of both kinds do not mix between two steps.
                Backends that offer it say `token_normalization` in their capabilities.
            native_loss_only: Refuse a loss that the backend lacks (`emulated` in its capabilities),
                rather than have the gateway compute it, which costs a forward more.

        Raises InvalidRequest for a datum that is larger than a message, ValueError for another
        normalization.
        """
        if normalization not in _NORMALIZATIONS:
            known = " or ".join(map(repr, _NORMALIZATIONS))
            raise ValueError(f"normalization is {normalization!r}; must be {known}")
        requests = [
            ForwardBackwardRequest(
                model_id=self.model_id,
                data=chunk,
                loss_fn=loss_fn,
                loss_fn_config=_config(config),
                normalization=_NORMALIZATIONS[normalization],
                native_loss_only=native_loss_only,
            )
            for chunk in self._chunks(data, loss_fn)
        ]
        return self._submit(self._stub.ForwardBackward, requests, read_forward_backward)

    def forward_backward_reverse_kl(
        self,
        data: Sequence[ReverseKlDatum],
        reference: str,
        *,
        temperature: float | None = None,
    ) -> OperationFuture[ForwardBackwardResult]:
        """Add the gradient of the reverse KL divergence from this model to a reference, over the
        whole vocabulary. Backends that offer it say `reverse_kl` in their capabilities.

        Args:
            data: The texts (`reverse_kl_datum`). A large batch goes in chunks, as in
                `forward_backward`.
            reference: The path of a checkpoint on the same base model, or the base model's name.
            temperature: The logits of both are divided by it; 1 if None.

        The result's outputs have a field "loss", float32 [1], for each datum.
        """
        requests = [
            ForwardBackwardReverseKlRequest(
                model_id=self.model_id,
                reference_model_path=reference,
                data=chunk,
                temperature=temperature,
            )
            for chunk in split(data, self._connection.limits)
        ]
        rpc = self._connection.mint.ForwardBackwardReverseKl
        return self._submit(rpc, requests, read_forward_backward)

    def vla_train_step(
        self,
        data: Sequence[VlaDatum],
        loss_fn: str = "flow_matching",
        options: Mapping[str, Any] | None = None,
    ) -> OperationFuture[OptimStepResult]:
        """Take one training step of a vision-language-action model, gradient and optimizer in one.
        `options` are further fields of the provider's. Backends that offer it say `vla` in their
        capabilities."""
        request = VlaTrainStepRequest(model_id=self.model_id, loss_fn=loss_fn, data=data)
        if options:
            request.options.update(options)
        return self._submit(
            self._connection.mint.VlaTrainStep,
            [request],
            lambda operations: OptimStepResult(dict(operations[0].vla_train_step.metrics)),
        )

    def _chunks(self, data: Sequence[Datum], loss_fn: str) -> list[Sequence[Datum]]:
        together = 2 if loss_fn in self._connection.paired_losses else 1
        return split(data, self._connection.limits, together=together)

    def optim_step(
        self,
        *,
        learning_rate: float | None = None,
        beta1: float | None = None,
        beta2: float | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        grad_clip_norm: float | None = None,
        optimizer: OptimizerParams | None = None,
    ) -> OperationFuture[OptimStepResult]:
        """Move the weights by the gradients added up since the last step, then clear them.

        The settings are AdamW's; what is None takes the contract's default (`AdamParams`), such as
        a learning rate of 1e-4 and no clipping. `optimizer` takes another optimizer's instead.
        """
        adam = AdamParams(
            learning_rate=learning_rate,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
            grad_clip_norm=grad_clip_norm,
        )
        if optimizer is None:
            request = OptimStepRequest(model_id=self.model_id, adam=adam)
        elif adam.ListFields():
            raise ValueError("give AdamW's settings or another optimizer's, not both")
        else:
            request = OptimStepRequest(model_id=self.model_id, other=optimizer)
        return self._submit(self._stub.OptimStep, [request], read_optim_step)

    def save_state(
        self,
        name: str = "",
        *,
        ttl: timedelta | None = None,
        overwrite: bool = False,
        user_metadata: Mapping[str, str] | None = None,
    ) -> OperationFuture[str]:
        """Save weights and optimizer state; the result is the checkpoint's path. Without a name
        the gateway chooses one; after `ttl` it removes the checkpoint."""
        request = SaveStateRequest(
            model_id=self.model_id,
            name=name,
            ttl=duration(ttl),
            overwrite=overwrite,
            user_metadata=dict(user_metadata or {}),
        )
        return self._submit(
            self._stub.SaveState, [request], lambda operations: operations[0].save_state.path
        )

    def load_state(self, path: str, *, with_optimizer: bool = False) -> OperationFuture[str]:
        """Replace the weights by a checkpoint's, and clear the gradients; the result is its path.
        The optimizer goes on where the checkpoint's was, or starts anew."""
        request = LoadStateRequest(model_id=self.model_id, path=path, with_optimizer=with_optimizer)
        return self._submit(
            self._stub.LoadState, [request], lambda operations: operations[0].load_state.path
        )

    def save_weights_for_sampler(
        self,
        name: str = "",
        *,
        ttl: timedelta | None = None,
        overwrite: bool = False,
        user_metadata: Mapping[str, str] | None = None,
    ) -> OperationFuture[Sampler]:
        """Freeze the weights as they are at this point in the order; the result samples from them.
        With a name they are kept as a checkpoint (`Sampler.model_path`); without, they live as
        long as the session."""
        request = SaveWeightsForSamplerRequest(
            model_id=self.model_id,
            name=name,
            sampler_seq_id=None if name else self._take_sampler_id(),
            ttl=duration(ttl),
            overwrite=overwrite,
            user_metadata=dict(user_metadata or {}),
        )

        def read(operations: Sequence[Operation]) -> Sampler:
            saved = operations[0].save_weights_for_sampler
            source = Source(sampler_id=saved.sampler_id, model_path=saved.path)
            return Sampler(self._connection, source)

        return self._submit(self._stub.SaveWeightsForSampler, [request], read)

    def save_weights_external(
        self,
        name: str,
        *,
        ttl: timedelta | None = None,
        overwrite: bool = False,
        user_metadata: Mapping[str, str] | None = None,
    ) -> OperationFuture[str]:
        """Save the weights as an adapter to be taken elsewhere; the result is the checkpoint's
        path. Backends that offer it say `external_weights` in their capabilities."""
        request = SaveWeightsExternalRequest(
            model_id=self.model_id,
            name=name,
            ttl=duration(ttl),
            overwrite=overwrite,
            user_metadata=dict(user_metadata or {}),
        )
        return self._submit(
            self._stub.SaveWeightsExternal,
            [request],
            lambda operations: operations[0].save_weights_external.path,
        )

    def unload(self) -> OperationFuture[None]:
        """Free the model's memory after everything submitted before. Its checkpoints and samplers
        stay."""
        request = UnloadModelRequest(model_id=self.model_id)
        return self._submit(self._connection.models.UnloadModel, [request], lambda _: None)

    def close(self, *, drain: bool) -> None:
        """Submit nothing more; `drain` first waits until everything submitted before is done. The
        session does this at its end."""
        if drain and self._submitter.is_used:
            # Fails if the model is unloaded already, or gone with its session: nothing to wait for.
            self.unload().exception()
        self._submitter.close()

    def _submit(
        self,
        rpc: Rpc[Request],
        requests: Sequence[Request],
        read: Callable[[Sequence[Operation]], Result],
    ) -> OperationFuture[Result]:
        submission = self._submitter.submit(rpc, requests)
        return OperationFuture(self._connection, submission.accepted, read)


def _config(config: LossConfig | None) -> dict[str, ConfigValue]:
    return {
        name: ConfigValue(text=value) if isinstance(value, str) else ConfigValue(number=value)
        for name, value in (config or {}).items()
    }
