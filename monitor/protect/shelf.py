"""Where protected checkpoints lie: one directory each, with a manifest that says what it holds and whence it came.

    DIRECTORY/<run>/<checkpoint>/manifest.json      what is here; written last, so without it nothing is here
    DIRECTORY/<run>/<checkpoint>/NAME               the checkpoint under its own name, a file or a directory

`<run>` and `<checkpoint>` are hashes, since names from outside make no paths here. It removes only what its own
manifests name, and what it left half done itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storage.records import StoredSnapshot

MANIFEST = "manifest.json"
MANIFEST_BYTES_MAX = 32 * 2**20
KIND = "ckptwatch protected checkpoint"
PARTIAL = "partial-"
ENTRIES_MAX = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One protected checkpoint. `files` are (relative name, size in bytes, mtime in ns); `origin` is where it was."""

    directory: str
    run: str
    step: int | None
    origin: str
    signature: str
    method: str
    size_bytes: int
    kept_at: float
    files: tuple[tuple[str, int, int], ...]

    @property
    def path(self) -> str:
        """Return the path to resume from."""
        return os.path.join(self.directory, os.path.basename(self.origin))


class Shelf:
    """The directory of protected checkpoints; reading it needs no right to write."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def path_of(self, snapshot: StoredSnapshot) -> str | None:
        """Return where a snapshot's checkpoint is kept, None where it is not, or no longer as it was kept."""
        kept = _read(self._place(snapshot.run, snapshot.path, snapshot.signature))
        if kept is None or (kept.run, kept.signature) != (snapshot.run, snapshot.signature):
            return None
        return kept.path if all(_is_as_kept(kept, file) for file in kept.files) else None

    def kept(self) -> list[Kept]:
        """Return everything that is kept, the oldest first."""
        found = [kept for place in self._places() if (kept := _read(place)) is not None]
        return sorted(found, key=lambda kept: (kept.kept_at, kept.directory))

    def has(self, run: str, origin: str, signature: str) -> bool:
        """Say whether a checkpoint is kept already, whole and as it was kept."""
        kept = _read(self._place(run, origin, signature))
        return kept is not None and all(_is_as_kept(kept, file) for file in kept.files)

    def begin(self, run: str, origin: str, signature: str) -> str:
        """Make an empty directory for a checkpoint that is to be brought; raises OSError."""
        place = self._place(run, origin, signature)
        partial = os.path.join(os.path.dirname(place), PARTIAL + os.path.basename(place))
        _clear(partial)
        os.makedirs(partial, mode=0o755)
        return partial

    def finish(self, partial: str, kept: Kept) -> Kept:
        """Write the manifest of what was brought, and give it its place; raises OSError."""
        place = os.path.join(os.path.dirname(partial), os.path.basename(partial).removeprefix(PARTIAL))
        document = {"kind": KIND, **{k: v for k, v in asdict(kept).items() if k != "directory"}}
        with open(os.path.join(partial, MANIFEST), "x", encoding="utf-8", errors="surrogateescape") as file:
            json.dump(document, file)
            file.flush()
            os.fsync(file.fileno())
        damaged = _read(place)
        if damaged is not None:
            self.remove(damaged)
        os.rename(partial, place)
        found = _read(place)
        if found is None:
            raise OSError(f"{place} cannot be read again")
        return found

    def remove(self, kept: Kept) -> None:
        """Remove a protected checkpoint: the files its manifest names, and that at last; raises OSError.

        Ended in between, it is found again by its manifest, and is no copy any more.
        """
        for name, _, _ in kept.files:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(kept.directory, name))
        os.unlink(os.path.join(kept.directory, MANIFEST))
        _remove_empty(kept.directory)

    def clear_partial(self) -> None:
        """Remove what was left half done when this program was ended."""
        for run in _entries(self.directory):
            for entry in _entries(run.path) if run.is_dir(follow_symlinks=False) else ():
                if entry.name.startswith(PARTIAL):
                    _clear(entry.path)

    def abandon(self, partial: str) -> None:
        """Remove a checkpoint that could not be brought."""
        _clear(partial)

    def _place(self, run: str, origin: str, signature: str) -> str:
        return os.path.join(self.directory, _hash(run), _hash(f"{origin}\0{signature}"))

    def _places(self) -> Iterator[str]:
        for run in _entries(self.directory):
            if run.is_dir(follow_symlinks=False):
                yield from (e.path for e in _entries(run.path) if not e.name.startswith(PARTIAL))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def _entries(directory: str) -> Sequence[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as found:
            return [entry for _, entry in zip(range(ENTRIES_MAX), found, strict=False)]
    except OSError:
        return ()


def _read(directory: str) -> Kept | None:
    """Return what a directory holds, None for one that is not ours or whose manifest makes no sense."""
    path = Path(directory) / MANIFEST
    try:
        if path.stat().st_size > MANIFEST_BYTES_MAX:
            return None
        document: Any = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
        if document.pop("kind") != KIND:
            return None
        files = tuple((str(name), int(size), int(mtime)) for name, size, mtime in document.pop("files"))
        if any(os.path.isabs(name) or ".." in Path(name).parts for name, _, _ in files):
            return None
        return Kept(directory=directory, files=files, **document)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _is_as_kept(kept: Kept, file: tuple[str, int, int]) -> bool:
    try:
        status = os.stat(os.path.join(kept.directory, file[0]))
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == file[1:]


def _clear(directory: str) -> None:
    """Remove a half-made directory with all in it; it holds nothing but what was brought into it."""
    for place, _, files in os.walk(directory, topdown=False):
        for name in files:
            os.unlink(os.path.join(place, name))
        os.rmdir(place) if not os.path.islink(place) else os.unlink(place)


def _remove_empty(directory: str) -> None:
    for place, _, _ in os.walk(directory, topdown=False):
        with contextlib.suppress(OSError):  # something of another's lies in it: it stays
            os.rmdir(place)
