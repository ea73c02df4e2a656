"""A daemon's share of the work where several daemons watch the same directories and record into one database.

It remembers what this daemon has claimed and renews it in time. It measures nothing and knows no file. With SQLite one
daemon alone records, so there are no claims.
"""

from __future__ import annotations

import os
import socket
import uuid
from enum import StrEnum

from storage import claims, queries
from storage.database import Database
from storage.errors import DatabaseError
from storage.records import Checkpoint

LEASE_SECONDS = 60.0
RENEWED_AFTER_SHARE = 0.25  # of the lease: so that three renewals may fail before it lapses


class Claim(StrEnum):
    """What became of the wish to work on a checkpoint."""

    OURS = "ours"
    ELSEWHERE = "elsewhere"  # another daemon works on the run just now
    STORED = "stored"  # another daemon has stored this very checkpoint already


class Claims:
    """The leases of one daemon; runs are claimed in its one working thread. `owner` is unique to the process."""

    def __init__(self, database: Database, *, lease_seconds: float = LEASE_SECONDS, owner: str | None = None) -> None:
        self._database = database
        self._lease_seconds = lease_seconds
        self.owner = owner or f"{socket.gethostname()[:100]}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._renew_at: dict[str, float] = {}  # by run that is ours

    def take(self, checkpoint: Checkpoint, now: float) -> Claim:
        """Claim the run of a checkpoint, unless it is another's or the checkpoint is stored; raise DatabaseError."""
        run = checkpoint.run
        with self._database.write_beside() as session:
            if not claims.take(session, claims.of_run(run), self.owner, lease_seconds=self._lease_seconds):
                return Claim.ELSEWHERE
            if queries.is_known(session, run, checkpoint.path, checkpoint.signature):
                if run not in self._renew_at:
                    claims.release(session, claims.of_run(run), self.owner)
                return Claim.STORED
        self._renew_at[run] = now + RENEWED_AFTER_SHARE * self._lease_seconds
        return Claim.OURS

    def renew(self, now: float) -> None:
        """Renew the leases for which it is time; raise DatabaseError."""
        # The second condition is for a clock that was set back.
        due = sorted(run for run, at in self._renew_at.items() if at <= now or at > now + self._lease_seconds)
        if not due:
            return
        with self._database.write_beside() as session:
            claims.renew(session, [claims.of_run(run) for run in due], self.owner, lease_seconds=self._lease_seconds)
        self._renew_at.update(dict.fromkeys(due, now + RENEWED_AFTER_SHARE * self._lease_seconds))

    def release(self, run: str) -> None:
        """Give a run back, so that any daemon may take its next checkpoint; what fails here lapses by itself."""
        self._renew_at.pop(run, None)
        try:
            with self._database.write_beside() as session:
                claims.release(session, claims.of_run(run), self.owner)
        except DatabaseError:
            return

    def may_send(self, notifier: str) -> bool:
        """Say whether this daemon is the one that sends what is due at a notifier; safe in any thread.

        Raise DatabaseError.
        """
        with self._database.write_beside() as session:
            return claims.take(session, claims.of_notifier(notifier), self.owner, lease_seconds=self._lease_seconds)

    def close(self) -> None:
        """Give everything back at the end."""
        self._renew_at.clear()
        try:
            with self._database.write_beside() as session:
                claims.release_all(session, self.owner)
        except DatabaseError:
            return
