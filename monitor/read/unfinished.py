"""Names that writers use for what is not finished yet. Pure text, no file is touched."""

from __future__ import annotations

import re

# Dot names that are part of a checkpoint, not a temporary file of somebody's.
_KEPT_DOT_NAMES = frozenset({".metadata", ".metadata.json", ".snapshot_metadata"})
_TEMPORARY = re.compile(
    r"""
      \..*                      # hidden: .tmpAbC123 of safetensors, .nfs0000 of a file deleted while open
    | .*\.tmp.*
    | tmp-.*
    | tmp\.pth\.tar
    | tmp\.pt
    | recovery_tmp.*
    | .*\.part
    | .*\.tempstate.*
    | .*\.orbax-checkpoint-tmp.*
    | .*\.__lock
    | .*-unfinished(\.txt)?
    """,
    re.VERBOSE | re.DOTALL,
)
_UNFINISHED_MARKER = re.compile(r"(.+)-unfinished(\.txt)?", re.DOTALL)
_MARKED_SUFFIXES = (".ckpt", ".nemo", ".distcp")


def is_temporary(name: str, *, is_directory: bool = False) -> bool:
    """Say whether a base name is one that writers use for what is not finished yet."""
    if name in _KEPT_DOT_NAMES:
        return False
    if is_directory and name.endswith(("-tmp", "_temp")):
        return True
    return _TEMPORARY.fullmatch(name) is not None


def is_temporary_inside(name: str) -> bool:
    """Say the same of a name deep inside a checkpoint's directory, where zarr and others keep dot files."""
    if name.startswith("."):
        return name.startswith((".tmp", ".nfs"))
    return is_temporary(name)


def unfinished_of(name: str) -> str | None:
    """Return what the marker file `name` marks as unfinished (NeMo: `X-unfinished` for `X.ckpt`), None for others."""
    match = _UNFINISHED_MARKER.fullmatch(name)
    return match.group(1) if match else None


def is_held_back(name: str, unfinished: frozenset[str]) -> bool:
    """Say whether the file `name` is marked by one of the sibling markers in `unfinished` (from `unfinished_of`)."""
    if not unfinished:
        return False
    if name in unfinished:
        return True
    return any(name.endswith(s) and name[: -len(s)] in unfinished for s in _MARKED_SUFFIXES)
