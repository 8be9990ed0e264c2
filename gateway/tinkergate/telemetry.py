"""The log: one line an event, as JSON for machines or as text for people.

Logs never hold prompts, tokens, answers or keys. A line about a call has its method, outcome,
duration and sizes, and the words of an error only where the fault is the gateway's or a backend's:
words about a caller's fault may quote the request.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import IO, Literal

LogFormat = Literal["auto", "human", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_FACTS = "facts"


def configure_logging(
    level: LogLevel, log_format: LogFormat, stream: IO[str] | None = None
) -> None:
    """Send the log to `stream` (stderr unless given), from `level` on. "auto" is human where the
    stream is a terminal, else JSON. Replaces what was configured before."""
    stream = stream or sys.stderr
    if log_format == "auto":
        log_format = "human" if stream.isatty() else "json"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if log_format == "json" else HumanFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("tinkergate").setLevel(level.upper())
    logging.captureWarnings(True)


def log_event(
    logger: logging.Logger,
    level: int,
    event: str,
    facts: Mapping[str, object],
    error: BaseException | None = None,
) -> None:
    """Log an event with facts by name; with an error, its traceback too."""
    logger.log(level, event, extra={_FACTS: facts}, exc_info=error)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, event, then the facts."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, _FACTS, {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class HumanFormatter(logging.Formatter):
    """Local time, level, event and facts on a line; a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        facts: Mapping[str, object] = getattr(record, _FACTS, {})
        told = "".join(f" {name}={value}" for name, value in facts.items())
        text = f"{clock} {record.levelname.lower():7} {record.getMessage()}{told}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text
