"""What lies in a watched root: the periodic scan, which is the truth that events only make come sooner.

Lists directories and asks for the status of files; opens, follows and changes nothing. Bounded in files, names and
depth. Between scans a directory whose own times did not change is not listed again; its known files are still asked
for their status, because a file overwritten in place leaves its directory untouched.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from monitor.read.reader import LimitError
from monitor.read.unfinished import is_held_back, unfinished_of
from monitor.read.unit import Claim, DirectoryListing, claimed_files, listing_of, unit_path
from monitor.watch.filesystem import is_inside
from monitor.watch.names import NameRules
from monitor.watch.runs import name_rank
from storage.records import FileStat, Problem, ProblemKind

# A listing is trusted later only when the directory had been left alone for this long before it was taken: a
# filesystem with coarse times could otherwise hide a name added within the same tick.
_LISTING_AGE_NS_MIN = 3_000_000_000
_PROBLEMS_MAX = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanLimits:
    """How much of a root is looked at before a scan gives up and says so."""

    files_max: int = 1_000_000  # files that match
    names_max: int = 10_000_000  # directory entries of any kind
    depth_max: int = 32  # directories below the root


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanProblem:
    """Something in a root that could not be looked at; `path` is absolute."""

    path: str
    problem: Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitEntry:
    """A checkpoint of several files: the path that stands for it, and its files sorted by name."""

    path: str
    files: tuple[FileStat, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanResult:
    """What one scan saw.

    `entries` are the single files that may be checkpoints, one per inode, sorted by path; `units` are the checkpoints
    of several files, sorted by path; no file is in both. `problems` are at most 1000.
    `held_back` are files beside a marker that says they are unfinished. `truncated` says that a limit was reached.
    `complete` is False when something could not be looked at, so that the absence of a file says nothing.
    """

    root: str
    entries: tuple[FileStat, ...]
    problems: tuple[ScanProblem, ...]
    held_back: tuple[str, ...]
    truncated: bool
    complete: bool
    n_names: int  # directory entries listed in this scan
    n_listed: int  # directories listed, not taken from memory
    units: tuple[UnitEntry, ...] = ()


@dataclass(slots=True)
class _Listing:
    """The names of one directory that matter, and the directory's state when they were read."""

    state: tuple[int, int, int, int]
    trusted: bool
    files: list[str]
    links: list[str]
    directories: list[str]
    held_back: list[str]
    claims: list[Claim] = field(default_factory=list)


@dataclass(slots=True)
class _Names:
    """Every name in a directory while it is listed, for the claims."""

    files: list[str] = field(default_factory=list)
    directories: list[str] = field(default_factory=list)
    unfinished: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Pass:
    """What one scan gathers."""

    n_names: int = 0
    n_listed: int = 0
    truncated: bool = False
    complete: bool = True
    problems: list[ScanProblem] = field(default_factory=list)
    held_back: list[str] = field(default_factory=list)
    files: dict[tuple[int, int], FileStat] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)
    units: list[UnitEntry] = field(default_factory=list)
    n_unit_files: int = 0

    def add_problem(self, path: str, kind: ProblemKind, message: str) -> None:
        if len(self.problems) < _PROBLEMS_MAX:
            self.problems.append(ScanProblem(path=path, problem=Problem(kind=kind, message=message[:500])))


class Scanner:
    """Scans one root again and again, and remembers what did not change."""

    def __init__(
        self,
        root: str,
        rules: NameRules,
        *,
        limits: ScanLimits | None = None,
        skip_directories: Collection[str] = (),
        claims_of: Callable[[DirectoryListing], Sequence[Claim]] = lambda _: (),
        scandir: Callable[[str], os._ScandirIterator[str]] = os.scandir,
    ) -> None:
        """Prepare to scan `root` (made absolute).

        `skip_directories` are absolute paths that belong to other roots. `claims_of` says which names of a directory
        make up checkpoints of several files; it is asked whenever a directory is listed.
        """
        self.root = os.path.realpath(root)
        self._rules = rules
        self._limits = limits or ScanLimits()
        self._skip = frozenset(skip_directories)
        self._claims_of = claims_of
        self._scandir = scandir
        self._listings: dict[str, _Listing] = {}
        self._files: dict[str, FileStat] = {}
        self._units: dict[str, UnitEntry] = {}

    def scan(self, now: float) -> ScanResult:
        """Look at the whole root once; `now` is the wall clock in Unix seconds.

        A root that is missing or cannot be listed gives a problem and no entries, never an exception.
        """
        found = _Pass()
        kept: dict[str, _Listing] = {}
        pending = [(self.root, 0)]
        while pending and not found.truncated:
            directory, depth = pending.pop()
            listing = self._list(directory, now, found)
            if listing is None:
                continue
            kept[directory] = listing
            found.held_back += [_joined(directory, name) for name in listing.held_back]
            self._stat_files(directory, listing, found)
            self._stat_units(directory, listing, found)
            if listing.directories and depth >= self._limits.depth_max:
                found.add_problem(
                    directory,
                    ProblemKind.LIMIT,
                    f"directories deeper than {self._limits.depth_max} are not looked into",
                )
                continue
            pending += [(_joined(directory, name), depth + 1) for name in listing.directories]
        self._resolve_links(found)
        self._listings = kept
        entries = tuple(sorted(found.files.values(), key=lambda f: f.path))
        self._files = {f.path: f for f in entries}
        units = tuple(sorted(found.units, key=lambda u: u.path))
        self._units = {u.path: u for u in units}
        if found.truncated:
            found.complete = False
        return ScanResult(
            root=self.root,
            entries=entries,
            problems=tuple(found.problems),
            held_back=tuple(found.held_back),
            truncated=found.truncated,
            complete=found.complete,
            n_names=found.n_names,
            n_listed=found.n_listed,
            units=units,
        )

    def _list(self, directory: str, now: float, found: _Pass) -> _Listing | None:
        try:
            # Not lstat: the root was resolved, and below it only real directories are entered.
            status = os.stat(directory, follow_symlinks=False)
            state = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
            known = self._listings.get(directory)
            if known is not None and known.trusted and known.state == state:
                return known
            age_ns = int(now * 1e9) - max(status.st_mtime_ns, status.st_ctime_ns)
            listing = _Listing(
                state=state, trusted=age_ns >= _LISTING_AGE_NS_MIN, files=[], links=[], directories=[], held_back=[]
            )
            self._fill(directory, listing, found)
        except OSError as error:
            self._note(directory, error, found)
            return None
        return listing

    def _fill(self, directory: str, listing: _Listing, found: _Pass) -> None:
        found.n_listed += 1
        relative = "" if directory == self.root else os.path.relpath(directory, self.root) + "/"
        names = _Names()
        with self._scandir(directory) as entries:
            for entry in entries:
                found.n_names += 1
                if found.n_names > self._limits.names_max:
                    self._truncate(directory, f"more than {self._limits.names_max} names", found)
                    listing.trusted = False
                    return
                self._sort_in(entry, relative, listing, names, found)
        if names.unfinished:
            held = frozenset(names.unfinished)
            listing.held_back = [n for n in (*listing.files, *listing.directories) if is_held_back(n, held)]
            listing.files = [n for n in listing.files if not is_held_back(n, held)]
            listing.links = [n for n in listing.links if not is_held_back(n, held)]
            listing.directories = [n for n in listing.directories if not is_held_back(n, held)]
        self._claim(directory, relative, listing, names)

    def _claim(self, directory: str, relative: str, listing: _Listing, names: _Names) -> None:
        """Give the names that belong to checkpoints of several files to those."""
        seen = listing_of(
            os.path.basename(directory), names.files, names.directories, unfinished=frozenset(names.unfinished)
        )
        for claim in self._claims_of(seen):
            if not self._rules.takes_unit(claim.index or seen.name, claim.files, relative):
                continue
            listing.claims.append(claim)
            taken = claim.names
            listing.files = [n for n in listing.files if n not in taken]
            listing.links = [n for n in listing.links if n not in taken]
            listing.directories = [n for n in listing.directories if n not in taken]

    def _sort_in(self, entry: os.DirEntry[str], relative: str, listing: _Listing, names: _Names, found: _Pass) -> None:
        name = entry.name
        marked = unfinished_of(name)
        if marked is not None:
            names.unfinished.add(marked)
        if entry.is_dir(follow_symlinks=False):
            if self._rules.takes_directory(name, relative + name) and entry.path not in self._skip:
                if _is_text(name):
                    listing.directories.append(name)
                    names.directories.append(name)
                else:
                    found.add_problem(_visible(entry.path), ProblemKind.UNSUPPORTED, "the name is not UTF-8; rename it")
            return
        if _is_text(name):
            names.files.append(name)
        if not self._rules.takes_file(name, relative + name):
            return
        if not _is_text(name):
            found.add_problem(_visible(entry.path), ProblemKind.UNSUPPORTED, "the name is not UTF-8; rename it")
        elif entry.is_symlink():
            listing.links.append(name)
        else:
            listing.files.append(name)  # what is no regular file is told apart by its status

    def _stat_files(self, directory: str, listing: _Listing, found: _Pass) -> None:
        for name in listing.files:
            path = _joined(directory, name)
            try:
                status = os.stat(path, follow_symlinks=False)
            except OSError as error:
                self._note(path, error, found)
                continue
            if stat.S_ISREG(status.st_mode):
                self._add(path, status, found)
            elif stat.S_ISLNK(status.st_mode):
                listing.trusted = False  # a file became a link since the directory was listed
            elif not stat.S_ISDIR(status.st_mode):
                found.add_problem(
                    path, ProblemKind.NOT_REGULAR, "a pipe, device or socket with a checkpoint's name; it is not read"
                )
            if found.truncated:
                return
        found.links += [_joined(directory, name) for name in listing.links]

    def _stat_units(self, directory: str, listing: _Listing, found: _Pass) -> None:
        for claim in listing.claims:
            path = unit_path(directory, claim)
            known = self._units.get(path)
            try:
                if known is not None and _is_untouched(known, claim):
                    files = known.files
                else:
                    files = claimed_files(directory, claim)
            except OSError as error:
                self._note(path, error, found)
                continue
            except LimitError as error:
                found.add_problem(path, ProblemKind.LIMIT, str(error))
                continue
            found.n_unit_files += len(files)
            if found.n_unit_files + len(found.files) > self._limits.files_max:
                self._truncate(path, f"more than {self._limits.files_max} matching files", found)
                return
            if not files:
                continue
            found.units.append(known if known and known.files == files else UnitEntry(path=path, files=files))

    def _resolve_links(self, found: _Pass) -> None:
        """Take a link as a name of its own only when its target lies in the root and was not found under its name."""
        in_units = {(f.device, f.inode) for unit in found.units for f in unit.files} if found.links else set()
        for path in sorted(found.links, key=_preference):
            if found.truncated:
                return
            try:
                target = os.path.realpath(path, strict=True)
                status = os.stat(target, follow_symlinks=False)
            except OSError:
                continue  # dangling or circular: Lightning's `last.ckpt` is both for a moment
            key = (status.st_dev, status.st_ino)
            if not stat.S_ISREG(status.st_mode) or key in found.files or key in in_units:
                continue
            if is_inside(target, self.root):
                self._add(path, status, found)
            else:
                found.add_problem(
                    path, ProblemKind.UNSAFE_REFERENCE, "a link to a file outside the watched root; it is not followed"
                )

    def _add(self, path: str, status: os.stat_result, found: _Pass) -> None:
        key = (status.st_dev, status.st_ino)
        other = found.files.get(key)
        if other is not None and _preference(other.path) <= _preference(path):
            return
        if other is None and len(found.files) >= self._limits.files_max:
            self._truncate(path, f"more than {self._limits.files_max} matching files", found)
            return
        known = self._files.get(path)
        if known is None or not _is_same(known, status):
            known = file_stat(path, status)
        found.files[key] = known

    def _truncate(self, path: str, reason: str, found: _Pass) -> None:
        found.truncated = True
        found.add_problem(path, ProblemKind.LIMIT, f"{reason} in the root; narrow the patterns or watch a subdirectory")

    def _note(self, path: str, error: OSError, found: _Pass) -> None:
        if isinstance(error, FileNotFoundError | NotADirectoryError) and path != self.root:
            return  # deleted while we looked: normal life
        found.complete = False
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            found.add_problem(path, ProblemKind.VANISHED, "the watched root does not exist or is not a directory")
        elif isinstance(error, PermissionError):
            user = os.geteuid() if hasattr(os, "geteuid") else "this"
            found.add_problem(
                path, ProblemKind.PERMISSION, f"user {user} may not list it; grant read and search rights"
            )
        else:
            found.add_problem(path, ProblemKind.IO_ERROR, f"the system could not look at it: {error.strerror or error}")


def scan(root: str, rules: NameRules, *, now: float, limits: ScanLimits | None = None) -> ScanResult:
    """Look at `root` once, without memory of an earlier scan."""
    return Scanner(root, rules, limits=limits).scan(now)


def file_stat(path: str, status: os.stat_result) -> FileStat:
    """Return the facts of `status` that say whether a file changed."""
    return FileStat(
        path=path,
        device=status.st_dev,
        inode=status.st_ino,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
    )


def stat_file(path: str) -> FileStat | None:
    """Return the present state of a file, links followed; None when it is gone. Other OSErrors pass through."""
    try:
        return file_stat(path, os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_same(known: FileStat, status: os.stat_result) -> bool:
    return (
        known.mtime_ns == status.st_mtime_ns
        and known.size_bytes == status.st_size
        and known.inode == status.st_ino
        and known.device == status.st_dev
    )


def _is_untouched(known: UnitEntry, claim: Claim) -> bool:
    """Say whether a unit without subdirectories has the very files as before, without building anything new."""
    if claim.directories or len(known.files) != len(claim.files):
        return False
    try:
        return all(_is_same(file, os.stat(file.path)) for file in known.files)
    except OSError:
        return False


def _preference(path: str) -> tuple[int, int, str]:
    """Order the names of one inode: one that tells a step before `last` and `best`, then the shorter one."""
    return (name_rank(path), len(path), path)


def _joined(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory != "/" else f"/{name}"


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _visible(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()
