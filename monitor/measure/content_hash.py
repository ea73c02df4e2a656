"""The hash of what cannot be measured, so that two checkpoints can be told apart all the same; bounded memory."""

from __future__ import annotations

import hashlib

from monitor.read.access.sources import ByteSource


def content_hash(source: ByteSource, chunk_bytes: int) -> str:
    """Return the SHA-256 of all bytes of a source as 64 hexadecimal digits, read `chunk_bytes` at a time.

    Raises a ReadError where the source cannot be read.
    """
    hashed = hashlib.sha256(usedforsecurity=False)
    buffer = memoryview(bytearray(min(chunk_bytes, source.n_bytes)))
    for offset in range(0, source.n_bytes, chunk_bytes):
        part = buffer[: min(chunk_bytes, source.n_bytes - offset)]
        source.read_into(offset, part)
        hashed.update(part)
    return hashed.hexdigest()
