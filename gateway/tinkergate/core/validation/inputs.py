"""Rules for what a model reads."""

from __future__ import annotations

from collections.abc import Iterable

from tinkergate.core.validation.facts import Facts
from tinkergate.core.validation.report import Report
from tinkergate.core.validation.tensors import TokenIds
from tinkergate.errors import unsupported
from tinkergate.v1 import Chunk, DType

IMAGE_FORMATS = frozenset({"png", "jpeg"})


class InputRules:
    """Checks the model inputs of one request; `finish` ends it."""

    def __init__(self, report: Report, facts: Facts) -> None:
        self._report = report
        self._facts = facts
        self._ids = TokenIds(report, DType.DTYPE_INT32, facts.vocab_size)

    def check(self, field: str, chunks: Iterable[Chunk]) -> int | None:
        """The number of tokens of a model input, or None if only the backend can know it or the
        input is bad. `field` is the path of `chunks`. Raises UNSUPPORTED for chunks that the
        backend does not read."""
        count = 0
        known = True
        empty = True
        for i, chunk in enumerate(chunks):
            empty = False
            packed = chunk.encoded_text.tokens
            if packed or chunk.HasField("encoded_text"):
                if len(packed) % 4:
                    self._report.add(
                        f"{field}[{i}].encoded_text.tokens",
                        f"has {len(packed)} bytes; must be a multiple of the 4 bytes of int32",
                    )
                    known = False
                    continue
                self._ids.add(f"{field}[{i}].encoded_text.tokens", packed)
                count += len(packed) // 4
            else:
                tokens = self._other_tokens(f"{field}[{i}]", chunk)
                known = known and tokens is not None
                count += tokens or 0
        limit = self._facts.max_context_length
        if empty or (known and count == 0):
            self._report.add(field, "has no tokens; needs at least one")
            return None
        if limit and count > limit:
            self._report.add(
                field, f"has {count} tokens; the model's context holds at most {limit}"
            )
        return count if known else None

    def _other_tokens(self, field: str, chunk: Chunk) -> int | None:
        """The tokens that an image or a piece of audio takes, if that is known."""
        capabilities = self._facts.abilities.capabilities
        which = chunk.WhichOneof("chunk")
        if which is None:
            self._report.add(field, "is empty; must hold text, an image or audio")
            return None
        if which == "dmel":
            if not capabilities.audio_input:
                raise unsupported(f"audio chunks ({field})", capabilities.name)
            if not chunk.dmel.dmel:
                self._report.add(f"{field}.dmel.dmel", "is empty")
            return None
        if not capabilities.image_input:
            raise unsupported(f"image chunks ({field})", capabilities.name)
        image = chunk.image if which == "image" else chunk.image_asset_pointer
        if image.format not in IMAGE_FORMATS:
            self._report.add(f"{field}.{which}.format", f'is "{image.format}"; must be png or jpeg')
        if which == "image" and not chunk.image.data:
            self._report.add(f"{field}.image.data", "is empty")
        if which == "image_asset_pointer" and not chunk.image_asset_pointer.location:
            self._report.add(f"{field}.image_asset_pointer.location", "is empty")
        if not image.HasField("expected_tokens"):
            return None
        if image.expected_tokens < 1:
            self._report.add(
                f"{field}.{which}.expected_tokens",
                f"is {image.expected_tokens}; must be at least 1",
            )
        return image.expected_tokens

    def finish(self) -> None:
        """Look at the token ids of all inputs."""
        self._ids.finish()
