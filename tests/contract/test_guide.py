"""docs/contract.md tells every failure, and tells it right."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.rpc import code_pb2

from tinkergate.errors import Kind
from tinkergate.v1 import ErrorReason

ROOT = Path(__file__).parents[2]
PREFIX = "ERROR_REASON_"
ROW = re.compile(r"^\| `([A-Z_]+)` \| (`[A-Z_`, ]+`) \| (.+) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def told() -> dict[str, set[str]]:
    """The codes of each reason, as the guide tells them."""
    rows = ROW.findall((ROOT / "docs" / "contract.md").read_text())
    assert len({reason for reason, _, _ in rows}) == len(rows)
    return {reason: set(re.findall(r"[A-Z_]+", codes)) for reason, codes, _ in rows}


def given() -> Iterator[tuple[str, str, str]]:
    """Every (reason, kind, file) that the gateway raises in so many words."""
    gateway = ROOT / "gateway" / "tinkergate"
    for file in sorted(gateway.rglob("*.py")):
        if file.is_relative_to(gateway / "v1"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "GatewayError":
                values = [*node.args, *(keyword.value for keyword in node.keywords)]
                names = [ast.unparse(value) for value in values]
                reasons = [name for name in names if name.startswith(f"ErrorReason.{PREFIX}")]
                kinds = [name for name in names if name.startswith("Kind.")]
                if len(reasons) == len(kinds) == 1:
                    reason = reasons[0].removeprefix(f"ErrorReason.{PREFIX}")
                    yield reason, kinds[0].removeprefix("Kind."), str(file.relative_to(ROOT))


def test_every_reason_has_a_row(told: dict[str, set[str]]) -> None:
    reasons = {name.removeprefix(PREFIX) for name in ErrorReason.keys()}  # noqa: SIM118
    assert told.keys() == reasons - {"UNSPECIFIED"}


def test_codes_exist_and_kinds_give_them(told: dict[str, set[str]]) -> None:
    codes = {code_pb2.Code.Name(kind.value.code) for kind in Kind}
    for reason, names in told.items():
        assert names <= codes, reason


def test_what_the_gateway_raises_is_what_the_guide_tells(told: dict[str, set[str]]) -> None:
    raised = list(given())
    assert len(raised) > 20
    for reason, kind, file in raised:
        code = code_pb2.Code.Name(Kind[kind].value.code)
        assert code in told[reason], f"{file} raises {reason} as {code}"


def test_every_document_that_is_named_exists() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)", document.read_text()):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_every_document_is_in_the_index() -> None:
    docs = ROOT / "docs"
    index = (docs / "README.md").read_text()
    pages = {file.name for file in docs.glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\((\w+\.md)\)", index))
