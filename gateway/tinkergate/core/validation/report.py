"""Gathering what is wrong with a request."""

from __future__ import annotations

from tinkergate.errors import MAX_VIOLATIONS, Violation, invalid


class Report:
    """The broken rules of one request, in the order found, as many as are told."""

    __slots__ = ("violations",)

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def add(self, field: str, description: str) -> None:
        """Note a broken rule. `description` tells the value and the rule."""
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(Violation(field, description))

    @property
    def full(self) -> bool:
        """Whether looking further makes no sense."""
        return len(self.violations) >= MAX_VIOLATIONS

    def raise_if_any(self) -> None:
        """Raise INVALID if a rule is broken."""
        if self.violations:
            raise invalid(self.violations)
