"""JSON of bounded cost: what parsing will take is estimated from the bytes before it is parsed.

A text of 100 MB can become Python objects of several gigabytes: two characters make a list. It must not read files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NoReturn

from monitor.read.naming import printable
from monitor.read.reader import CorruptError, LimitError, ReadError

JSON_OBJECTS_BYTES_MAX = 384 * 2**20

# What one of each makes, in bytes, measured on CPython 3.11 with texts of ten characters, and rounded up.
_COSTS = ((b":", 250), (b"[", 90), (b"{", 250), (b",", 40))

Pairs = list[tuple[str, object]]


def parse_json(
    raw: bytes,
    what: str,
    *,
    objects: Callable[[Pairs], object] | None = None,
    too_deep: type[ReadError] = LimitError,
) -> object:
    """Return the value of a JSON text in UTF-8; `objects` makes each object of its pairs.

    `what` begins the messages ("the header"). Raises LimitError for a text that would take more than
    JSON_OBJECTS_BYTES_MAX as objects, `too_deep` for one that is nested beyond what the parser bears, and CorruptError
    for what is not JSON, NaN and infinities among it.
    """
    check_json_cost(raw, what)

    def no_constant(text: str) -> NoReturn:
        raise CorruptError(f"{what} holds {text}, which is not JSON")

    try:
        value: object = json.loads(raw.decode("utf-8"), object_pairs_hook=objects, parse_constant=no_constant)
    except RecursionError:
        raise too_deep(f"{what} is nested too deeply") from None
    except ValueError as error:  # broken UTF-8 or JSON, or an integer of thousands of digits
        raise CorruptError(f"{what} is not valid JSON: {printable(str(error), 200)}") from None
    return value


def check_json_cost(raw: bytes | bytearray, what: str) -> None:
    """Raise LimitError for a JSON text that would take more than JSON_OBJECTS_BYTES_MAX as objects."""
    if len(raw) < JSON_OBJECTS_BYTES_MAX // max(cost for _, cost in _COSTS):
        return
    cost = sum(raw.count(mark) * each for mark, each in _COSTS)
    if cost > JSON_OBJECTS_BYTES_MAX:
        raise LimitError(
            f"{what} would take about {cost >> 20} MiB when parsed, the limit is {JSON_OBJECTS_BYTES_MAX >> 20} MiB"
        )
