"""Reading a JSON object field by field, with one clear error for a field that is wrong.

Fields that nobody asks for are accepted and ignored, as newer programs send fields that older
services have never heard of. null is as good as absent.
"""

from __future__ import annotations

from typing import Any

from tinkergate.errors import GatewayError, invalid_field

MAX_SHOWN = 80
"""How many characters of a wrong value an error shows."""


class Fields:
    """One JSON object, and where it lies in the body."""

    def __init__(self, value: object, path: str = "") -> None:
        """`path` is the object's own, empty for the body. Raises GatewayError unless `value` is
        an object."""
        if not isinstance(value, dict):
            raise invalid_field(path or "body", f"is {shown(value)}; must be an object")
        self.value: dict[str, Any] = value
        self._path = path

    def path(self, name: str) -> str:
        """The path of a field."""
        return f"{self._path}.{name}" if self._path else name

    def __contains__(self, name: str) -> bool:
        return self.value.get(name) is not None

    def raw(self, name: str) -> Any:
        """The field, whatever it is. Raises GatewayError if it is absent."""
        value = self.value.get(name)
        if value is None:
            raise invalid_field(self.path(name), "is not given")
        return value

    def wrong(self, name: str, rule: str) -> GatewayError:
        """The error of a field that breaks `rule`, such as "must be a text"."""
        return invalid_field(self.path(name), f"is {shown(self.value.get(name))}; {rule}")

    def text(self, name: str) -> str:
        """A text that must be there."""
        value = self.raw(name)
        if not isinstance(value, str):
            raise self.wrong(name, "must be a text")
        return value

    def optional_text(self, name: str) -> str | None:
        """A text, or None."""
        return self.text(name) if name in self else None

    def integer(self, name: str, *, bits: int = 32, signed: bool = True) -> int:
        """An integer that must be there and fit into so many bits."""
        value = self.raw(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, "must be an integer")
        end = 1 << (bits - signed)
        if not (-end if signed else 0) <= value < end:
            raise self.wrong(name, f"must fit {'int' if signed else 'uint'}{bits}")
        return value

    def optional_integer(self, name: str, *, bits: int = 32, signed: bool = True) -> int | None:
        """An integer, or None."""
        return self.integer(name, bits=bits, signed=signed) if name in self else None

    def number(self, name: str) -> float:
        """A number that must be there."""
        value = self.raw(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "must be a number")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """A number, or None."""
        return self.number(name) if name in self else None

    def flag(self, name: str, default: bool = False) -> bool:
        """true or false; `default` if it is absent."""
        if name not in self:
            return default
        value = self.raw(name)
        if not isinstance(value, bool):
            raise self.wrong(name, "must be true or false")
        return value

    def fields(self, name: str) -> Fields:
        """An object that must be there."""
        return Fields(self.raw(name), self.path(name))

    def optional_fields(self, name: str) -> Fields | None:
        """An object, or None."""
        return self.fields(name) if name in self else None

    def items(self, name: str) -> list[Any]:
        """A list; an empty one if it is absent."""
        if name not in self:
            return []
        value = self.raw(name)
        if not isinstance(value, list):
            raise self.wrong(name, "must be a list")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts; an empty one if it is absent."""
        values = self.items(name)
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise invalid_field(
                    f"{self.path(name)}[{index}]", f"is {shown(value)}; must be a text"
                )
        return values


def shown(value: object) -> str:
    """A wrong value as an error shows it."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case dict():
            return "an object"
        case list():
            return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
