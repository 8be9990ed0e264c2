"""How the command ends: its exit codes, and the exception that ends it with a message.

| code | meaning |
|---|---|
| 0 | done |
| 1 | the work failed |
| 2 | the command was used wrongly |
| 3 | the gateway cannot be reached |
| 130 | interrupted from the keyboard |
"""

from __future__ import annotations

FAILED = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130


class CommandFailed(Exception):
    """Ends the command: `message` goes to stderr as one line, `code` is the exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
