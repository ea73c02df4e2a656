"""Which kind of filesystem a path lies on: decides whether events can be trusted and how long quiet must last.

Reads the kernel's mount table and nothing else; never touches the watched directory beyond resolving its path.
"""

from __future__ import annotations

import os
from pathlib import Path

LOCAL = "local"
NETWORK = "network"

MOUNT_TABLE_PATH = "/proc/self/mountinfo"
MOUNT_TABLE_BYTES_MAX = 16 * 2**20

# Another machine (or the host of a virtual machine) can write here without this kernel sending an event,
# and sizes and times may come from an attribute cache.
_NETWORK_TYPES = frozenset(
    {
        "9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "cvmfs", "davfs", "fakeowner", "fhgfs", "gfs", "gfs2",
        "glusterfs", "gpfs", "grpcfuse", "lustre", "mmfs", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "osxfs",
        "panfs", "pfs", "prl_fs", "pvfs2", "quobyte", "smb", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs",
        "wekafs", "xtreemfs",
    }
)  # fmt: skip
_LOCAL_FUSE_TYPES = frozenset({"fuseblk", "fuse.ntfs", "fuse.ntfs-3g", "fuse.exfat", "fuse.lxcfs"})


def filesystem_kind(path: str, *, mount_table_path: str = MOUNT_TABLE_PATH) -> str:
    """Return "network" when another machine may write to `path` unseen by this kernel, else "local".

    Where there is no mount table (not Linux) or it cannot be read, the answer is "local": the periodic scan finds
    everything either way, only later.
    """
    return kind_of_type(filesystem_type(path, mount_table_path=mount_table_path))


def filesystem_type(path: str, *, mount_table_path: str = MOUNT_TABLE_PATH) -> str:
    """Return the kernel's name of the filesystem that holds `path` ("ext4", "nfs4", ...), "" when unknown.

    A path that does not exist yet is judged by its nearest existing parent's mount.
    """
    try:
        with Path(mount_table_path).open("rb") as stream:
            table = stream.read(MOUNT_TABLE_BYTES_MAX).decode("utf-8", "surrogateescape")
    except OSError:
        return ""
    return type_in_table(os.path.realpath(path), table)


def kind_of_type(name: str) -> str:
    """Return "network" or "local" for a filesystem name; FUSE counts as network except for known disk formats."""
    lowered = name.lower()
    if lowered in _NETWORK_TYPES:
        return NETWORK
    if lowered.startswith("fuse") and lowered not in _LOCAL_FUSE_TYPES:
        return NETWORK
    return LOCAL


def type_in_table(real_path: str, table: str) -> str:
    """Return the filesystem name of the longest mount point that holds `real_path`, "" when none does.

    `table` is the text of /proc/self/mountinfo (proc(5)). Of two mounts on the same point the later one counts,
    because it covers the earlier one.
    """
    best_length, best_name = -1, ""
    for line in table.splitlines():
        left, separator, right = line.partition(" - ")
        fields = left.split(" ")
        if not separator or len(fields) < 5:
            continue
        mount_point = _unescaped(fields[4])
        if len(mount_point) >= best_length and is_inside(real_path, mount_point):
            best_length, best_name = len(mount_point), right.split(" ", 1)[0]
    return best_name


def is_inside(path: str, directory: str) -> bool:
    """Say whether `path` is `directory` itself or lies below it; both absolute and normalised, no link is followed."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _unescaped(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
