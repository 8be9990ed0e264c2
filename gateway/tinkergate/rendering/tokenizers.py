"""The tokenizers in use: loaded when they are first asked for, off the event loop."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tinkergate.errors import GatewayError
from tinkergate.rendering.tokenizer import ChatTokenizer, no_tokenizer

FindFolder = Callable[[str], Path]
"""Answers the folder of a tokenizer's id. Raises GatewayError."""

Result = TypeVar("Result")


def nowhere(name: str) -> Path:
    """The folder of no tokenizer: for gateways that have none."""
    raise no_tokenizer(name, "it was started without any")


class Tokenizers:
    """Tokenizers by their ids, and the thread that works with them.

    One thread does all of the work: tokenizers may not be used by two at a time, and Python would
    not run two at once anyway. The few that were used last stay in memory.
    """

    def __init__(self, find_folder: FindFolder = nowhere, *, kept: int = 8) -> None:
        """`find_folder` runs on the thread; `kept` is how many tokenizers stay in memory."""
        self._find_folder = find_folder
        self._kept = kept
        self._loaded: OrderedDict[str, ChatTokenizer] = OrderedDict()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rendering")

    def submit(self, tokenizer_id: str, work: Callable[[ChatTokenizer], Result]) -> Future[Result]:
        """What `work` answers with the tokenizer, on the thread. Cancelling it before its turn has
        come takes it away. Ends in GatewayError, UNSUPPORTED if the gateway does not have the
        tokenizer."""
        return self._thread.submit(self._run, tokenizer_id, work)

    def close(self) -> None:
        """Take no more work; what runs is left to end by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run(self, tokenizer_id: str, work: Callable[[ChatTokenizer], Result]) -> Result:
        return work(self._tokenizer(tokenizer_id))

    def _tokenizer(self, tokenizer_id: str) -> ChatTokenizer:
        if tokenizer_id in self._loaded:
            self._loaded.move_to_end(tokenizer_id)
            return self._loaded[tokenizer_id]
        try:
            folder = self._find_folder(tokenizer_id)
        except GatewayError as error:
            raise no_tokenizer(tokenizer_id, error.message) from error
        except ImportError as error:
            raise no_tokenizer(
                tokenizer_id,
                f"finding it needs {error.name}: pip install 'tinkergate[engine]'",
            ) from error
        loaded = self._loaded[tokenizer_id] = ChatTokenizer.load(folder, tokenizer_id)
        while len(self._loaded) > self._kept:
            self._loaded.popitem(last=False)
        return loaded
