from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from storage import sqlite

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /home rw,relatime - nfs4 server:/home rw,vers=4.2
31 30 8:2 / /home/local rw - xfs /dev/sdb1 rw
32 22 0:41 / /mnt/with\\040space rw - lustre mgs@tcp:/scratch rw
33 22 0:42 / /mnt/remote rw - fuse.sshfs host: rw
34 22 0:43 / /over rw - ext4 /dev/sdc1 rw
35 22 0:44 / /over rw - cifs //server/share rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/var/lib", False),
        ("/home", True),
        ("/home/user/.local/state", True),
        ("/homestead", False),
        ("/home/local/x", False),
        ("/mnt/with space/x", True),
        ("/mnt/remote", True),
        ("/over/x", True),
    ],
)
def test_the_filesystem_of_a_path_is_the_one_mounted_nearest(path: str, expected: bool) -> None:
    assert sqlite.on_network_filesystem(Path(path), MOUNTS) is expected


def test_write_ahead_logging_works_in_an_ordinary_directory_and_leaves_nothing_there(tmp_path: Path) -> None:
    assert sqlite.wal_works(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_write_ahead_logging_does_not_work_where_nothing_can_be_written(tmp_path: Path) -> None:
    assert not sqlite.wal_works(tmp_path / "missing")


def test_a_backup_holds_what_is_still_in_the_log(tmp_path: Path) -> None:
    path, target = tmp_path / "x.db", tmp_path / "x.db.backup"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (x)")
        connection.execute("INSERT INTO t VALUES (7)")
        connection.commit()
        (tmp_path / "x.db.backup.partial").write_text("left over")
        sqlite.back_up(path, target)
    with closing(sqlite3.connect(target)) as copy:
        assert copy.execute("SELECT x FROM t").fetchall() == [(7,)]
    assert target.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "x.db.backup.partial").exists()
