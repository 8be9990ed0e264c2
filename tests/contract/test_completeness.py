"""Nothing of the contract is left without somebody who does it."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor

import tinkergate.ingress.grpc as door
from tinkergate import v1
from tinkergate.v1 import ErrorReason, Operation, OperationKind

GATEWAY = Path(__file__).parents[2] / "gateway" / "tinkergate"

ELSEWHERE: dict[str, str] = {}
"""Reasons that the gateway does not give yet, or not itself, and what does."""


def methods() -> list[MethodDescriptor]:
    """Every RPC of the contract."""
    pool = descriptor_pool.Default()
    names = [name.removesuffix("Servicer") for name in v1.__all__ if name.endswith("Servicer")]
    services = [pool.FindServiceByName(f"tinkergate.v1.{name}") for name in names]
    return [method for service in services for method in service.methods]


@pytest.fixture(scope="module")
def servicers() -> dict[str, type]:
    """The door's servicers by the name of their service."""
    for module in pkgutil.walk_packages(door.__path__, f"{door.__name__}."):
        importlib.import_module(module.name)
    found = {}
    for name in v1.__all__:
        if name.endswith("Servicer"):
            classes = getattr(v1, name).__subclasses__()
            ours = [each for each in classes if each.__module__.startswith(door.__name__)]
            assert len(ours) == 1, f"{name}: {ours}"
            found[name.removesuffix("Servicer")] = ours[0]
    return found


def test_there_are_services_and_methods() -> None:
    assert {method.containing_service.name for method in methods()} >= {
        "CapabilitiesService",
        "CheckpointService",
        "ModelService",
        "OperationService",
        "SamplingService",
        "ScoringService",
        "SessionService",
        "TrainingService",
    }


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.full_name)
def test_the_door_answers_every_method(
    servicers: dict[str, type], method: MethodDescriptor
) -> None:
    """What is left out of a servicer would be answered UNIMPLEMENTED by its base class."""
    assert method.name in vars(servicers[method.containing_service.name])


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.full_name)
def test_long_work_is_submitted(method: MethodDescriptor) -> None:
    """All of training answers an Operation; what waits for one is never itself one."""
    if method.containing_service.name == "TrainingService":
        assert method.output_type.name == "Operation"
    if method.containing_service.name == "OperationService":
        assert method.output_type.name != "Operation"


def test_every_reason_is_given_somewhere() -> None:
    code = "\n".join(
        file.read_text()
        for file in GATEWAY.rglob("*.py")
        if "v1" not in file.relative_to(GATEWAY).parts
    )
    given = set(re.findall(r"\bERROR_REASON_[A-Z_]+\b", code)) | {"ERROR_REASON_UNSPECIFIED"}
    assert set(ErrorReason.keys()) - given == ELSEWHERE.keys()
    assert given <= set(ErrorReason.keys())


def test_every_kind_of_operation_has_a_result() -> None:
    fields = {field.name for field in Operation.DESCRIPTOR.oneofs_by_name["result"].fields}
    kinds = {
        name.removeprefix("OPERATION_KIND_").lower()
        for name, number in OperationKind.items()
        if number != OperationKind.OPERATION_KIND_UNSPECIFIED
    }
    # Both share forward_backward's.
    sharing = {"forward", "forward_backward_reverse_kl"}
    assert kinds - sharing == fields - {"error"}


def test_every_kind_of_operation_has_a_method() -> None:
    submitted = {method.name for method in methods() if method.output_type.name == "Operation"}
    kinds = {
        "".join(word.title() for word in name.removeprefix("OPERATION_KIND_").split("_"))
        for name, number in OperationKind.items()
        if number != OperationKind.OPERATION_KIND_UNSPECIFIED
    }
    assert kinds == submitted
