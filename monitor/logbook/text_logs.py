"""Logs that are text: trainer_state.json, CSV tables and JSON lines, to points. Bytes in, points out; never raises.

What does not parse is passed over: a log is written by somebody else, often while we look.
"""

from __future__ import annotations

import csv
import json

from monitor.logbook.points import LogPoint, points_of

POINTS_MAX = 50_000
_COLUMNS_MAX = 1000


def trainer_state(content: bytes) -> list[LogPoint]:
    """Return the points of the `log_history` in a trainer_state.json; NaN and Infinity literals are read as such."""
    document = _json(content)
    history = document.get("log_history") if isinstance(document, dict) else None
    if not isinstance(history, list):
        return []
    return [p for entry in history[-POINTS_MAX:] if isinstance(entry, dict) for p in points_of(entry)]


def json_lines(content: bytes, *, whole: bool) -> list[LogPoint]:
    """Return the points of a log with one JSON object a line; the first line may be cut off unless `whole`."""
    lines = content.split(b"\n")
    found: list[LogPoint] = []
    for line in lines[0 if whole else 1 :]:
        text = line.strip()
        if not text.startswith(b"{"):
            continue
        entry = _json(text)
        if isinstance(entry, dict):
            found += points_of(entry)
    return found[-POINTS_MAX:]


def csv_table(head: bytes, content: bytes) -> list[LogPoint]:
    """Return the points of a table whose header is the first line of `head`; `content` is its end, or all of it.

    Lightning writes one row for training and one for validation, with empty cells for the rest.
    """
    header = _row(head.split(b"\n", 1)[0])
    if len(header) > _COLUMNS_MAX:
        return []
    found: list[LogPoint] = []
    for line in content.split(b"\n")[1:]:  # the header, or a line that is cut off
        row = _row(line)
        if len(row) == len(header):
            found += points_of({name: cell for name, cell in zip(header, row, strict=True) if cell})
    return found[-POINTS_MAX:]


def _row(line: bytes) -> list[str]:
    try:
        return next(csv.reader([line.decode("utf-8", "replace").strip("\r\0")]), [])
    except csv.Error:
        return []


def _json(content: bytes) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
