"""The log's two forms."""

from __future__ import annotations

import io
import json
import logging
from datetime import datetime

import pytest

from tinkergate.telemetry import configure_logging, log_event


@pytest.fixture(autouse=True)
def _keep_logging():
    root, ours = logging.getLogger(), logging.getLogger("tinkergate")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], level, our_level = before
    root.setLevel(level)
    ours.setLevel(our_level)
    logging.captureWarnings(False)


def logged(log_format, level="info", error=None, event="call", **facts) -> str:
    stream = io.StringIO()
    configure_logging(level, log_format, stream)
    log_event(logging.getLogger("tinkergate.test"), logging.INFO, event, facts, error)
    return stream.getvalue()


def failure() -> Exception:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        return error


def test_json_lines_are_one_object_each():
    line = json.loads(logged("json", method="/a/B", ms=1.5, error=failure()))
    assert line["level"] == "info"
    assert line["event"] == "call"
    assert line["method"] == "/a/B"
    assert line["ms"] == 1.5
    assert "ValueError: two\nlines" in line["traceback"]
    assert datetime.fromisoformat(line["time"]).utcoffset().total_seconds() == 0


def test_a_json_line_stays_one_line_whatever_is_in_it():
    text = logged("json", event="new\nline", fact="a\nb\u2028c", error=failure())
    assert len(text.splitlines()) == 1
    assert json.loads(text)["fact"] == "a\nb\u2028c"


def test_human_lines_tell_the_same():
    text = logged("human", method="/a/B", ms=1.5)
    assert text.endswith("info    call method=/a/B ms=1.5\n")


def test_auto_is_json_where_nobody_looks_on():
    assert logged("auto").startswith("{")


def test_less_than_the_level_is_not_logged():
    assert logged("json", level="warning") == ""


def test_other_libraries_are_heard_from_warnings_on():
    stream = io.StringIO()
    configure_logging("debug", "json", stream)
    logging.getLogger("other").info("chatter")
    logging.getLogger("other").warning("trouble")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["trouble"]
