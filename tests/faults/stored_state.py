"""What a database says about the world, without when and by which number it was told: equal for equal histories."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

# How often and when something was done differs from one run to the next; what came of it must not.
IGNORED_TABLES = frozenset({"meta", "sqlite_sequence"})
IGNORED_COLUMNS = frozenset({"id", "duration_seconds", "n_attempts", "last_error", "receipt", "active"})

State = dict[str, list[str]]


def state(path: Path) -> State:
    """Return the rows of every table as sorted texts; references are replaced by what they refer to."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        names = {n for (n,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        runs = {row["id"]: row["name"] for row in connection.execute("SELECT id, name FROM runs")}
        snapshots = {
            row["id"]: f"{row['path']}|{row['signature']}"
            for row in connection.execute("SELECT id, path, signature FROM snapshots")
        }
        tensors = {
            row["id"]: (runs[row["run_id"]], row["digest"])
            for row in connection.execute("SELECT id, run_id, digest FROM tensors")
        }
        references: dict[str, dict[int, Any]] = {"run_id": runs, "snapshot_id": snapshots, "tensor_id": tensors}
        found: State = {}
        for name in sorted(names - IGNORED_TABLES):
            rows = [_told(dict(row), references) for row in connection.execute(f'SELECT * FROM "{name}"')]
            found[name] = sorted(repr(sorted(row.items())) for row in rows)
        return found


def problems_of(path: Path) -> list[str]:
    """Return what SQLite finds wrong with the whole file, indexes and references included."""
    with closing(sqlite3.connect(path)) as connection:
        rows = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
        broken = connection.execute("PRAGMA foreign_key_check").fetchall()
    return [row for row in rows if row != "ok"] + [f"no parent: {row}" for row in broken]


def difference(one: State, two: State) -> list[str]:
    """Return the first rows of each table that are in one state and not in the other."""
    lines = []
    for name in sorted({*one, *two}):
        a, b = one.get(name, []), two.get(name, [])
        if a != b:
            only_a, only_b = sorted(set(a) - set(b)), sorted(set(b) - set(a))
            lines.append(f"{name}: {len(a)} and {len(b)} rows")
            lines += [f"  only first:  {row[:1500]}" for row in only_a[:2]]
            lines += [f"  only second: {row[:1500]}" for row in only_b[:2]]
    return lines


def _told(row: dict[str, Any], references: dict[str, dict[int, Any]]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for column, value in row.items():
        if column in IGNORED_COLUMNS or column.endswith("_at"):
            continue
        if column in references:
            told[column] = references[column].get(value)
        elif column.endswith("_id"):
            continue
        elif isinstance(value, str) and value.startswith("{"):
            told[column] = _without_times(json.loads(value))
        else:
            told[column] = value
    return told


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        kept = sorted(value.items())
        return [(k, _without_times(v)) for k, v in kept if k not in IGNORED_COLUMNS and not k.endswith("_at")]
    if isinstance(value, list):
        return [_without_times(v) for v in value]
    return value
