"""A daemon's own view of the work that it shares: what is its, what another's, and when to renew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from monitor.claims import Claim, Claims
from storage import claims as leases
from storage import writer
from storage.database import Database, open_database
from tests.support.stored import make_snapshot

SNAPSHOT = make_snapshot(1)
CHECKPOINT = SNAPSHOT.checkpoint
LEASE_SECONDS = 60.0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(str(tmp_path / "x.db"))
    yield opened
    opened.close()


def holders(database: Database) -> dict[str, str]:
    with database.read() as session:
        return leases.holders(session)


def test_a_run_is_one_daemons_until_it_is_given_back(database: Database) -> None:
    one, two = Claims(database, owner="one"), Claims(database, owner="two")
    later = replace(CHECKPOINT, path="/later.pt", signature="later")
    assert one.take(CHECKPOINT, 0.0) is Claim.OURS
    assert two.take(later, 0.0) is Claim.ELSEWHERE
    one.release(CHECKPOINT.run)
    assert two.take(later, 0.0) is Claim.OURS
    assert holders(database) == {f"run {CHECKPOINT.run}": "two"}
    two.close()
    assert holders(database) == {}


def test_what_another_has_stored_meanwhile_is_not_ours_to_measure(database: Database) -> None:
    with database.write() as session:
        assert writer.add_snapshot(session, SNAPSHOT) is not None
    one = Claims(database, owner="one")
    assert one.take(CHECKPOINT, 0.0) is Claim.STORED
    assert holders(database) == {}
    assert one.take(replace(CHECKPOINT, signature="rewritten"), 0.0) is Claim.OURS


@pytest.mark.parametrize(("now", "renews"), [(1.0, False), (20.0, True), (-3600.0, True)])
def test_leases_are_renewed_in_time_also_when_the_clock_was_set_back(
    database: Database, monkeypatch: pytest.MonkeyPatch, now: float, renews: bool
) -> None:
    one = Claims(database, lease_seconds=LEASE_SECONDS, owner="one")
    assert one.take(CHECKPOINT, 0.0) is Claim.OURS
    renewed: list[list[str]] = []
    monkeypatch.setattr(leases, "renew", lambda _session, names, _owner, **_: renewed.append(names))
    one.renew(now)
    assert renewed == ([[f"run {CHECKPOINT.run}"]] if renews else [])
    one.renew(now + 1.0)
    assert len(renewed) == int(renews)


def test_one_of_several_daemons_sends(database: Database) -> None:
    one, two = Claims(database, owner="one"), Claims(database, owner="two")
    assert [claims.may_send("slack") for claims in (one, two, one)] == [True, False, True]
    assert two.may_send("email")
    one.close()
    assert two.may_send("slack")


def test_owners_are_unique_to_the_process(database: Database) -> None:
    assert Claims(database).owner != Claims(database).owner
