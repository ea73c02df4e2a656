"""A process that writes is killed again and again: what it said is stored must be there, and nothing by half."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from sqlalchemy import select

from storage import queries
from storage.database import open_database
from storage.models import OutboxRow, table

ROOT = Path(__file__).resolve().parents[2]
N_TENSORS = 40
N_KILLS = 8

# Each transaction is what the daemon does for a checkpoint: snapshot, tensors, finding, alert and message at once.
WRITER = f"""
import sys
from storage import queries, writer
from storage.database import open_database
from storage.records import Notification
from tests.support.stored import make_alert, make_finding, make_snapshot, make_tensor

database = open_database(sys.argv[1])
tensors = tuple(make_tensor(f"layer.{{i}}.weight", i) for i in range({N_TENSORS}))
with database.read() as session:
    found = queries.run(session, "gpt")
step = 0 if found is None else found.last_step
while True:
    step += 1
    with database.write() as session:
        number = writer.add_snapshot(session, make_snapshot(step, tensors=tensors, drifts=()))
        writer.save_findings(session, number, [make_finding(step=step)])
        alert = make_alert(step=step, episode=step)
        writer.save_alert(session, alert)
        message = Notification(notifier="slack", reason="firing", alert=alert, deduplication_key=str(step),
                               last_good_step=None, last_good_path=None, created_at=0.0, due_at=0.0)
        writer.enqueue(session, message)
    print(step, flush=True)
"""


def test_killing_the_writer_loses_nothing_that_was_committed_and_stores_nothing_by_half(path: Path) -> None:
    moments = random.Random(1)
    for _ in range(N_KILLS):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdout is not None
            assert child.stderr is not None
            first = child.stdout.readline()
            assert first, child.stderr.read()
            time.sleep(moments.uniform(0.0, 0.08))
            child.kill()
            said = [first, *child.stdout.read().splitlines(keepends=True)]
        acknowledged = max(int(line) for line in said if line.endswith("\n"))
        check(path, acknowledged)


def check(path: Path, acknowledged: int) -> None:
    opened = open_database(str(path))
    assert opened.quick_check() == ()
    with opened.read() as session:
        history = queries.history(session, "gpt", limit=100_000)
        # The last transaction may have been committed just before its acknowledgement would have been printed.
        assert [stored.step for stored in history] in [
            list(range(1, acknowledged + 1)),
            list(range(1, acknowledged + 2)),
        ]
        for stored in history[-3:]:
            assert len(queries.tensors(session, stored.id, with_sketch=True)) == N_TENSORS
            assert len(queries.findings(session, stored.id)) == 1
        steps = [stored.step for stored in history]
        assert sorted(alert.episode for alert in queries.alerts(session, limit=100_000)) == steps
        keys = session.execute(select(table(OutboxRow).c.deduplication_key)).scalars()
        assert sorted(int(key) for key in keys) == steps
    opened.close()
