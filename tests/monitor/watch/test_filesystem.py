from __future__ import annotations

from pathlib import Path

import pytest

from monitor.watch.filesystem import filesystem_kind, filesystem_type, is_inside, kind_of_type, type_in_table

TABLE = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /mnt/nfs rw - nfs4 server:/export rw
31 22 0:41 / /mnt/with\\040space rw - cifs //server/share rw
32 22 0:42 / /mnt/nfs/local rw - xfs /dev/vdb rw
33 22 0:43 / /data rw - ext4 /dev/vdc rw
34 33 0:44 / /data rw shared:5 master:1 - fuse.juicefs jfs rw
35 22 0:45 / /mnt/half
"""


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/u/out", "ext4"),
        ("/mnt/nfs", "nfs4"),
        ("/mnt/nfs/run", "nfs4"),
        ("/mnt/nfs2/run", "ext4"),
        ("/mnt/with space/run", "cifs"),
        ("/mnt/nfs/local/run", "xfs"),
        ("/data/run", "fuse.juicefs"),
    ],
)
def test_the_longest_and_latest_mount_point_counts(path: str, name: str) -> None:
    assert type_in_table(path, TABLE) == name


@pytest.mark.parametrize("name", ["nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "fuse.sshfs", "fuse", "9p", "NFS"])
def test_filesystems_that_others_write_to_are_network(name: str) -> None:
    assert kind_of_type(name) == "network"


@pytest.mark.parametrize("name", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "fuseblk", ""])
def test_disks_are_local_and_so_is_what_is_not_known(name: str) -> None:
    assert kind_of_type(name) == "local"


def test_a_path_is_judged_through_its_links_and_also_before_it_exists(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(f"1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / {tmp_path.resolve()}/share rw - nfs b rw\n")
    (tmp_path / "share").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "share")
    assert filesystem_kind(str(tmp_path / "link" / "not" / "yet"), mount_table_path=str(table)) == "network"
    assert filesystem_kind(str(tmp_path), mount_table_path=str(table)) == "local"


def test_without_a_mount_table_everything_is_local(tmp_path: Path) -> None:
    assert filesystem_type(str(tmp_path), mount_table_path=str(tmp_path / "none")) == ""
    assert filesystem_kind(str(tmp_path), mount_table_path=str(tmp_path / "none")) == "local"


def test_this_machines_own_table_knows_its_root() -> None:
    assert filesystem_type("/") != ""


def test_a_directory_holds_itself_and_what_is_below_but_not_its_namesakes() -> None:
    assert is_inside("/a", "/a")
    assert is_inside("/a/b", "/a")
    assert is_inside("/a", "/")
    assert not is_inside("/ab", "/a")
