"""When and of which runs details of old snapshots are dropped, so that the database of a long run stays small.

Which snapshots lose them is `storage.retention`'s to say. Used by one thread, the daemon's loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from monitor.stored_journey import best_number
from storage.database import Database
from storage.records import RunSummary
from storage.retention import thin_distributions, thin_sketches

THIN_SECONDS: Final = 600.0  # how often details of old snapshots are looked for


class Thinner:
    """Drops details of old snapshots, of every run a part at a time; the best snapshot of a run keeps its own."""

    def __init__(self, database: Database, *, n_recent: int) -> None:
        """Start without having looked at any run; the newest `n_recent` snapshots of each keep everything."""
        self._database = database
        self._n_recent = n_recent
        self._looked_at: float | None = None
        self._done: dict[str, int] = {}  # how many snapshots a run had when nothing was left to thin

    def is_due(self, now: float) -> bool:
        """Say whether it is time to look again; a clock that was set back does not stop it."""
        return self._looked_at is None or not 0.0 <= now - self._looked_at < THIN_SECONDS

    def thin(self, runs: Sequence[RunSummary], now: float) -> int:
        """Look at all runs that have grown, and return how many rows were dropped; raises a DatabaseError."""
        self._looked_at = now
        n_dropped = 0
        for run in runs:
            if run.n_snapshots <= self._n_recent or self._done.get(run.run) == run.n_snapshots:
                continue
            dropped = self._thin(run.run)
            if dropped == 0:
                self._done[run.run] = run.n_snapshots
            n_dropped += dropped
        return n_dropped

    def _thin(self, run: str) -> int:
        best = best_number(self._database, run)
        keep = frozenset() if best is None else frozenset({best})
        n_dropped = 0
        for thin in (thin_sketches, thin_distributions):
            with self._database.write() as session:
                n_dropped += thin(session, run, n_recent=self._n_recent, keep=keep)
        return n_dropped
