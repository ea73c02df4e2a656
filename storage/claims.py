"""Which daemon does what: leases in the database that several daemons share.

What is claimed is named by `of_run` or `of_notifier`. A run, not a checkpoint, is claimed, since the checkpoints of a
run are measured one after the other. A lease that is
not renewed lapses, and with it the claim of a daemon that died. Times are those of the database server, so that the
clocks of the machines need not agree. Nothing here is needed for exactness: a checkpoint that two daemons measure is
still stored once; claims keep it from being measured twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

from sqlalchemy import CursorResult, delete, func, literal, or_, select, update
from sqlalchemy.orm import Session

from storage.models import ClaimRow, table
from storage.writer import upsert

CLAIMS_MAX: Final = 1000  # so many are renewed by one statement


def of_run(run: str) -> str:
    """Return the name of the work on a run's checkpoints."""
    return f"run {run}"


def of_notifier(notifier: str) -> str:
    """Return the name of the work of sending what is due at a notifier."""
    return f"notifier {notifier}"


def take(session: Session, what: str, owner: str, *, lease_seconds: float) -> bool:
    """Claim a piece of work for a while, or renew one's own claim; return False when another daemon has it.

    It waits for nobody: a row that another daemon is looking at just now counts as taken.
    """
    claims = table(ClaimRow).c
    until = _now(session) + lease_seconds
    statement = upsert(session, table(ClaimRow)).values(what=what, owner=owner, leased_until=until)
    if _n_rows(session, statement.on_conflict_do_nothing()) > 0:
        return True
    free = select(claims.what).where(
        claims.what == what, or_(claims.owner == owner, claims.leased_until < _now(session))
    )
    if session.execute(free.with_for_update(skip_locked=True)).first() is None:
        return False
    session.execute(update(ClaimRow).where(ClaimRow.what == what).values(owner=owner, leased_until=until))
    return True


def renew(session: Session, names: Sequence[str], owner: str, *, lease_seconds: float) -> int:
    """Put off the end of one's own leases, at most CLAIMS_MAX; return how many still were one's own."""
    statement = update(ClaimRow).where(ClaimRow.what.in_(names[:CLAIMS_MAX]), ClaimRow.owner == owner)
    return _n_rows(session, statement.values(leased_until=_now(session) + lease_seconds))


def release(session: Session, what: str, owner: str) -> None:
    """Give a piece of work back; without effect when another daemon has taken it over."""
    session.execute(delete(ClaimRow).where(ClaimRow.what == what, ClaimRow.owner == owner))


def release_all(session: Session, owner: str) -> None:
    """Give everything back, at the end of a daemon."""
    session.execute(delete(ClaimRow).where(ClaimRow.owner == owner))


def holders(session: Session, *, limit: int = CLAIMS_MAX) -> dict[str, str]:
    """Return who has what by a lease that lasts."""
    claims = table(ClaimRow).c
    lasting = select(claims.what, claims.owner).where(claims.leased_until >= _now(session)).order_by(claims.what)
    return {row.what: row.owner for row in session.execute(lasting.limit(limit))}


def _now(session: Session) -> Any:
    """Return the Unix time by the server's clock, as an expression."""
    if session.get_bind().dialect.name == "postgresql":
        # Not now(), which is the time at which the transaction began.
        return func.date_part("epoch", func.clock_timestamp())
    return (func.julianday(literal("now")) - 2440587.5) * 86400.0


def _n_rows(session: Session, statement: Any) -> int:
    return cast("CursorResult[Any]", session.execute(statement)).rowcount
