"""The gateway's own secret, which signs tokens and URLs. It lies in the data folder, so what was
signed holds across restarts."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

FILE_NAME = "http_secret"
SECRET_BYTES = 32


def load_secret(data_dir: Path) -> bytes:
    """The secret of `data_dir`, drawn when it is first asked for. Only the owner can read the
    file. Raises OSError, and ValueError for a file that holds no secret."""
    path = data_dir / FILE_NAME
    try:
        text = path.read_text()
    except FileNotFoundError:
        return _draw(path)
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) < SECRET_BYTES:
        raise ValueError(f"{path} holds no secret; remove it to have a new one drawn")
    return secret


def derive(secret: bytes, purpose: str) -> bytes:
    """A key for one purpose: what is signed for one is worth nothing for another."""
    return hmac.digest(secret, purpose.encode(), hashlib.sha256)


def _draw(path: Path) -> bytes:
    secret = secrets.token_bytes(SECRET_BYTES)
    # Whole or not at all, whatever happens meanwhile.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secret.hex())
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return secret
