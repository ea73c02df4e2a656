"""A database of every earlier release, as that release's own code wrote it, is brought up to date and reads the same.

`schemas/REVISION.sql` are dumps of three small snapshots with findings, an alert and a message to be sent.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from storage import migrations, queries
from storage.database import open_database
from storage.errors import MigrationError
from tests.support.daemons import clean_environment

DUMPS = sorted((Path(__file__).parent / "schemas").glob("*.sql"))
FACTS = {
    "runs": "SELECT name, root, attempt FROM runs ORDER BY name",
    "snapshots": "SELECT path, signature, step, status, weight_norm, n_parameters FROM snapshots ORDER BY id",
    "statistics": (
        "SELECT snapshot_id, position, n_elements, n_nan, min, max, mean, std, norm_l2 "
        "FROM tensor_statistics ORDER BY snapshot_id, position"
    ),
    "tensors": "SELECT name, kind, dtype, shape FROM tensors ORDER BY id",
    "drifts": "SELECT snapshot_id, relative_l2, cosine_distance FROM drifts ORDER BY snapshot_id, position",
    "findings": "SELECT snapshot_id, rule, identity, summary FROM findings ORDER BY snapshot_id, rule, identity",
    "alerts": "SELECT fingerprint, episode, rule, state, summary, opened_at FROM alerts ORDER BY id",
    "outbox": "SELECT notifier, deduplication_key, reason, state, last_good_step FROM outbox ORDER BY id",
}


def facts(path: Path) -> dict[str, list[Any]]:
    """Return what has to survive, asked of the tables themselves."""
    with closing(sqlite3.connect(path)) as connection:
        return {name: connection.execute(statement).fetchall() for name, statement in FACTS.items()}


def restored(dump: Path, directory: Path) -> Path:
    path = directory / "ckptwatch.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(dump.read_text())
    return path


def test_there_is_a_database_of_each_schema_that_was_ever_the_newest() -> None:
    found = [dump.stem for dump in DUMPS]
    assert set(found) <= set(migrations.REVISIONS)
    assert found[0] == migrations.REVISIONS[0]
    assert len(found) >= 6


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.stem)
def test_what_an_earlier_release_wrote_reads_the_same_after_the_upgrade(dump: Path, tmp_path: Path) -> None:
    path = restored(dump, tmp_path)
    before = facts(path)
    assert len(before["snapshots"]) == 3
    assert all(before[name] for name in before if name != "outbox")
    opened = open_database(str(path))
    assert opened.quick_check() == ()
    with opened.read() as session:
        history = queries.history(session, "gpt")
        assert [stored.step for stored in history] == [1, 2, 3]
        assert [stored.weight_norm for stored in history] == [row[4] for row in before["snapshots"]]
        for stored in history:
            tensors = queries.tensors(session, stored.id, with_sketch=True)
            told = [row[8] for row in before["statistics"] if row[0] == stored.id]
            assert [tensor.norm_l2 for tensor in tensors] == told
            assert queries.findings(session, stored.id)
        assert [alert.fingerprint for alert in queries.alerts(session)] == [row[0] for row in before["alerts"]]
    opened.close()
    assert facts(path) == before
    backup = path.with_name(f"{path.name}.backup-{dump.stem}")
    assert backup.exists() == (dump.stem != migrations.HEAD)
    if backup.exists():
        assert facts(backup) == before


@pytest.mark.slow
@pytest.mark.parametrize("place", ["migrate.begin", "migrate.backed_up", "migrate.commit", "migrate.committed"])
def test_an_upgrade_that_is_killed_anywhere_is_done_by_the_next_start(place: str, tmp_path: Path) -> None:
    path = restored(DUMPS[0], tmp_path)
    before = facts(path)
    code = "import sys; from storage.database import open_database; open_database(sys.argv[1])"
    ended = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env=clean_environment(CKPTWATCH_FAILPOINTS=f"{place}=kill"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert MigrationError.__name__ in ended.stderr
    assert facts(path) == before
    opened = open_database(str(path))
    assert opened.quick_check() == ()
    opened.close()
    assert facts(path) == before
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".partial")]
