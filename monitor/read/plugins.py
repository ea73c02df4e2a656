"""Readers that other distributions offer. One that is broken costs itself and nothing else: its reason is logged.

The daemon asks them for names at every scan, so nothing that they do wrong may come out of here.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from monitor.read.naming import printable
from monitor.read.unit import Claim, DirectoryListing, DirectoryReader

_LOG = logging.getLogger(__name__)
_REASON_CHARACTERS_MAX = 200


def load_plugins(group: str, taken: Collection[str], texts: str, methods: Sequence[str]) -> tuple[type[Any], ...]:
    """Return the readers of an entry-point group, sorted by name; those that cannot be used are logged and left out.

    `taken` are the names of our own readers; `texts` is the fact that must be a tuple of texts, and `methods` are what
    can be called.
    """
    found: list[type[Any]] = []
    for entry_point in sorted(entry_points(group=group), key=lambda e: e.name):
        if entry_point.name in taken:
            _LOG.warning("reader %r of another distribution is ignored: the name is taken", entry_point.name)
            continue
        try:
            reader = entry_point.load()
            reason = _unfit(reader, taken, texts, methods)
        except Exception as error:  # noqa: BLE001 - a supervisor: what others wrote may fail in any way
            reason = _said(error)
        if reason is None:
            found.append(reader)
        else:
            _LOG.warning("reader %r of %s is left out: %s", entry_point.name, _origin(entry_point), reason)
    return tuple(found)


def claims_of(reader: type[DirectoryReader], listing: DirectoryListing, failed: set[str]) -> Sequence[Claim]:
    """Return what a reader of another distribution claims, nothing where it fails.

    The reason is logged the first time; `failed` remembers the names of those that failed before.
    """
    try:
        made: Sequence[object] = list(reader.claim(listing))
        claims = [claim for claim in made if isinstance(claim, Claim) and claim.reader == reader.name]
        if len(claims) == len(made):
            return claims
        reason = "it returns something else than claims of its own"
    except Exception as error:  # noqa: BLE001 - a supervisor: a scan goes on without this reader
        reason = _said(error)
    if reader.name not in failed:
        failed.add(reader.name)
        _LOG.warning("reader %r cannot say what is its own in %r: %s", reader.name, listing.name, reason)
    return ()


def _unfit(reader: Any, taken: Collection[str], texts: str, methods: Sequence[str]) -> str | None:
    """Return why something that was loaded is no reader, None where it may be one."""
    name, facts = getattr(reader, "name", None), getattr(reader, texts, None)
    if not isinstance(name, str) or not name or not name.isprintable() or name in taken:
        return "its `name` is not a text that is free"
    if not isinstance(facts, tuple) or not all(isinstance(fact, str) for fact in facts):
        return f"its `{texts}` are not a tuple of texts"
    missing = [method for method in methods if not callable(getattr(reader, method, None))]
    return f"it has no method `{missing[0]}`" if missing else None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {printable(str(error), _REASON_CHARACTERS_MAX)}"


def _origin(entry_point: EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist is not None else entry_point.value
