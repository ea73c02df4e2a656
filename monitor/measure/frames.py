"""What crosses the pipe between the daemon and a worker: a length and one JSON document, both ways.

JSON because a worker that a hostile file took over must not be able to send its parent anything that runs code.
"""

from __future__ import annotations

import json
import struct
from typing import Any, NoReturn

HEADER = struct.Struct(">I")
REQUEST_BYTES_MAX = 16 * 2**20
RESULT_BYTES_MAX = 256 * 2**20


class FrameError(Exception):
    """The other side sent, or was to be sent, something that is not a frame."""


def encode(document: dict[str, Any], *, bytes_max: int) -> bytes:
    """Return a frame; raise FrameError when the document is no finite JSON or longer than `bytes_max`."""
    try:
        body = json.dumps(document, allow_nan=False, separators=(",", ":")).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise FrameError(f"not a JSON document: {error}") from error
    if len(body) > bytes_max:
        raise FrameError(f"a document of {len(body)} bytes is over the limit of {bytes_max}")
    return HEADER.pack(len(body)) + body


def length(header: bytes, *, bytes_max: int) -> int:
    """Return how many bytes follow a header; raise FrameError when it announces more than `bytes_max`."""
    (n_bytes,) = HEADER.unpack(header)
    if n_bytes > bytes_max:
        raise FrameError(f"a frame of {n_bytes} bytes is announced, the limit is {bytes_max}")
    return int(n_bytes)


def decode(body: bytes | bytearray) -> dict[str, Any]:
    """Return the document of a frame's body; raise FrameError unless it is one JSON object without NaN or infinity."""
    try:
        document = json.loads(bytes(body), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"not a JSON document: {type(error).__name__}") from error
    if not isinstance(document, dict):
        raise FrameError("the document is not an object")
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not allowed")
