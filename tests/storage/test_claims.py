"""Leases between daemons: one has a run, the others pass it over, and what a dead one had is taken over."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from storage import claims
from storage.database import Database, open_database

LONG, SHORT = 60.0, 0.05


def take(database: Database, what: str, owner: str, lease_seconds: float = LONG) -> bool:
    with database.write_beside() as session:
        return claims.take(session, what, owner, lease_seconds=lease_seconds)


def holders(database: Database) -> dict[str, str]:
    with database.read() as session:
        return claims.holders(session)


def test_what_one_has_no_other_gets_until_it_is_given_back(database: Database) -> None:
    assert take(database, "gpt", "one")
    assert take(database, "gpt", "one")
    assert not take(database, "gpt", "two")
    assert take(database, "bert", "two")
    assert holders(database) == {"bert": "two", "gpt": "one"}
    with database.write_beside() as session:
        claims.release(session, "gpt", "two")  # not his to give
    assert not take(database, "gpt", "two")
    with database.write_beside() as session:
        claims.release(session, "gpt", "one")
    assert take(database, "gpt", "two")


def test_a_lease_that_nobody_renews_lapses_and_is_taken_over_once(database: Database) -> None:
    assert take(database, "gpt", "dead", SHORT)
    time.sleep(3 * SHORT)
    assert holders(database) == {}
    assert [take(database, "gpt", owner) for owner in ("one", "two")] == [True, False]
    with database.write_beside() as session:
        assert claims.renew(session, ["gpt"], "dead", lease_seconds=LONG) == 0  # it lives after all, and has lost it


def test_a_renewed_lease_does_not_lapse(database: Database) -> None:
    assert take(database, "gpt", "one", SHORT)
    assert take(database, "bert", "one", SHORT)
    with database.write_beside() as session:
        assert claims.renew(session, ["gpt", "llama"], "one", lease_seconds=LONG) == 1
    time.sleep(3 * SHORT)
    assert holders(database) == {"gpt": "one"}
    assert not take(database, "gpt", "two")


def test_a_daemon_that_ends_gives_all_back(database: Database) -> None:
    for what in ("gpt", "bert"):
        assert take(database, what, "one")
    assert take(database, "llama", "two")
    with database.write_beside() as session:
        claims.release_all(session, "one")
    assert holders(database) == {"llama": "two"}


def test_of_many_that_want_the_same_at_once_one_gets_it(database: Database, url: str) -> None:
    databases = [open_database(url) for _ in range(6)]
    barrier, got = threading.Barrier(6), Counter[str]()

    def want(index: int) -> None:
        for n in range(10):
            barrier.wait(60)
            if take(databases[index], f"run {n}", str(index)):
                got[f"run {n}"] += 1

    threads = [threading.Thread(target=want, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for opened in databases:
        opened.close()
    assert got == {f"run {n}": 1 for n in range(10)}


def test_claiming_does_not_wait_for_the_one_that_writes(database: Database, url: str) -> None:
    if not database.is_shared:
        pytest.skip("one daemon alone records into SQLite")
    other = open_database(url)
    with database.write():
        assert take(other, "gpt", "two")
    other.close()
