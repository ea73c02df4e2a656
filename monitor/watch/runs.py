"""Which run a path belongs to, which step its name states, and when a run began anew. Pure text, no file is touched."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from monitor.watch.filesystem import is_inside
from storage.records import FileStat, StoredSnapshot

SIGNATURE_CHARACTERS = 32
RUN_CHARACTERS_MAX = 200

# Directories that say "checkpoints lie here" or "this is step N", not "this is another run".
_PLAIN_COMPONENTS = frozenset(
    {
        "checkpoint", "checkpoints", "ckpt", "ckpts", "chkpt", "chkpts", "weights", "snapshot", "snapshots",
        "model_checkpoints", "saved_checkpoints", "save", "saves", "last", "latest", "best", "final",
    }
)  # fmt: skip
_COUNTER = r"(?:global[-_]?)?(?:step|steps|iter|iters|iteration|iterations|it|update|updates)"
_STEP_COMPONENT = re.compile(
    rf"(?:(?:checkpoint|ckpt|chkpt|snapshot|model|weights|save|epoch|ep|{_COUNTER})[-_=.]?\d+"
    rf"|(?:epoch[-_=]?\d+[-_]{_COUNTER}[-_=]?\d+))(?:-v\d+)?(?:\.ckpt)?",
    re.IGNORECASE,
)

_SHARD = re.compile(r"\d+[-_]of[-_]\d+", re.IGNORECASE)
_SUFFIXES = re.compile(
    r"(?:\.(?:safetensors|pt|pth|ckpt|bin|npz|npy|tar|h5|hdf5|keras|weights|index|gz))+$", re.IGNORECASE
)
_EXPLICIT_STEP = re.compile(rf"(?:^|[^a-z])(?:{_COUNTER})[-_=]?(\d+)(k)?(?![\d.]*[a-z\d])", re.IGNORECASE)
_FAIRSEQ = re.compile(r"checkpoint_(\d+)_(\d+)", re.IGNORECASE)
_NAMED_STEP = re.compile(
    r"(?:^|.*[-_.])(?:checkpoint|ckpt|chkpt|model|weights|snapshot|state|params|save|net)[-_.=]?(\d+)(k)?"
    r"(?=$|[-_.][a-z])",
    re.IGNORECASE,
)
_BARE_STEP = re.compile(r"(\d+)")
_STEP_DIRECTORY = re.compile(rf"(?:checkpoint|ckpt|chkpt|snapshot|{_COUNTER})[-_=.]?(\d+)(?:-v\d+)?", re.IGNORECASE)
_EPOCH = re.compile(r"(?:^|[^a-z])(?:epoch|ep)[-_=]?(\d+(?:\.\d+)?)(?![a-z\d])", re.IGNORECASE)
_DATE = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:\d{4}|\d{6})?")
_STEP_MAX = 10**12
_ALIASES = re.compile(r"(?:^|[-_.=])(?:last|latest|best|final|current|recent)(?:$|[-_.=\d])", re.IGNORECASE)
_DIRECTORIES_MAX = 3  # how far above a file its directories may state the step


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchRoot:
    """A directory to watch: its absolute path, the name its runs begin with, and other roots that lie inside it."""

    path: str
    name: str
    nested: tuple[str, ...] = ()

    def run_of(self, path: str) -> str:
        """Return the run that an absolute path below this root belongs to.

        "name" for a file directly in the root, else "name/exp1/..." after the directories below the root, without
        those that only hold or number checkpoints. A checkpoint that is a directory is given with a slash at its end;
        its own name belongs to the run's unless it states a step or epoch. Printable, at most 200 characters.
        """
        relative = os.path.relpath(os.path.dirname(path), self.path)
        components = [] if relative == "." else relative.split("/")
        kept = [c for c in components if c.lower() not in _PLAIN_COMPONENTS and not _STEP_COMPONENT.fullmatch(c)]
        if path.endswith("/") and kept and kept[-1] == components[-1]:
            own = components[-1]
            if step_from_path(own) is not None or epoch_from_path(own) is not None or is_alias(own):
                kept.pop()
        return _bounded("/".join([self.name, *kept]))


def resolve_roots(specs: Sequence[tuple[str, str | None]]) -> tuple[WatchRoot, ...]:
    """Return the roots for (path, configured name or None) pairs, each with a name of its own.

    Paths are made absolute and links resolved; a path given twice counts once. A name that was not configured is the
    directory's own name; where two would be equal, or one would look like a run below the other, parents are put in
    front until they differ. Raises ValueError when two different roots are configured with the same name.
    """
    named: dict[str, str | None] = {}
    for path, name in specs:
        real = os.path.realpath(os.path.expanduser(path))
        named[real] = named.get(real) or (name.strip("/") if name else None) or None
    configured = [name for name in named.values() if name is not None]
    for name in configured:
        if configured.count(name) > 1:
            raise ValueError(f"two watched roots are both called {name!r}; give each a name of its own")
    names = _unique_names(named)
    paths = tuple(named)
    return tuple(
        WatchRoot(path=p, name=names[p], nested=tuple(q for q in paths if q != p and is_inside(q, p))) for p in paths
    )


def signature(files: Sequence[FileStat], unit_path: str) -> str:
    """Return 32 hexadecimal characters that identify the bytes of a checkpoint on disk.

    SHA-256 over each file's name relative to the unit, size, mtime_ns and inode, in the order of the names. A single
    file's name relative to itself is ".", so that a renamed or hard-linked file keeps its signature. The device
    number is left out: it may differ after a reboot.
    """
    digest = hashlib.sha256()
    for name, file in sorted((os.path.relpath(f.path, unit_path), f) for f in files):
        digest.update(f"{name}\0{file.size_bytes}\0{file.mtime_ns}\0{file.inode}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:SIGNATURE_CHARACTERS]


def step_from_path(path: str) -> int | None:
    """Return the step that a checkpoint's name or its nearest directories state, None where none does.

    Knows step=8, checkpoint-500, ckpt_00012, model-000100.pt, iter_0000100, global_step5, 000100.pt, "10k"; takes no
    date, version, shard count or epoch for a step. The content's own step always goes first.
    """
    directory, name = os.path.split(path)
    step = _step_in_name(_SUFFIXES.sub("", name))
    if step is not None:
        return step
    for component in reversed(directory.split("/")[-_DIRECTORIES_MAX:]):
        match = _STEP_DIRECTORY.fullmatch(_SUFFIXES.sub("", component)) or _EXPLICIT_STEP.search(component)
        if match:
            return _as_step(match.group(1))
    return None


def epoch_from_path(path: str) -> float | None:
    """Return the epoch that a checkpoint's name or its nearest directories state (epoch=1, epoch_3), None otherwise."""
    directory, name = os.path.split(path)
    stem = _SUFFIXES.sub("", name)
    fairseq = _FAIRSEQ.fullmatch(stem)
    if fairseq:
        return float(fairseq.group(1))
    for text in (stem, *reversed(directory.split("/")[-_DIRECTORIES_MAX:])):
        match = _EPOCH.search(text)
        if match and float(match.group(1)) <= _STEP_MAX:
            return float(match.group(1))
    return None


def is_alias(path: str) -> bool:
    """Say whether a name stands for another checkpoint ("last", "best", ...) and not for a moment of the training."""
    return _ALIASES.search(_SUFFIXES.sub("", os.path.basename(path))) is not None


def name_rank(path: str) -> int:
    """Rank the names of one and the same file: 0 states a step or epoch, 1 is plain, 2 stands for another one."""
    if is_alias(path):
        return 2
    return 0 if step_from_path(path) is not None or epoch_from_path(path) is not None else 1


def next_attempt(previous: StoredSnapshot | None, step: int | None, written_at: float, *, path: str = "") -> int:
    """Return the attempt that a checkpoint belongs to, given the run's newest snapshot before it.

    A new attempt begins when the step goes back although the checkpoint was written later. Equal steps are no restart,
    and neither is a copy of an earlier step under a name such as "best" (`path`), nor a checkpoint without a step.
    """
    if previous is None:
        return 1
    if step is None or previous.step is None or is_alias(path):
        return previous.attempt
    went_back = step < previous.step and written_at > previous.written_at
    return previous.attempt + 1 if went_back else previous.attempt


def _step_in_name(stem: str) -> int | None:
    stem = _SHARD.sub("", stem)
    match = _EXPLICIT_STEP.search(stem)
    if match:
        return _as_step(match.group(1), thousands=bool(match.group(2)))
    match = _FAIRSEQ.fullmatch(stem)
    if match:
        return _as_step(match.group(2))
    match = _NAMED_STEP.match(stem) or _BARE_STEP.fullmatch(stem)
    if match is None or _DATE.fullmatch(match.group(1)):
        return None
    return _as_step(match.group(1), thousands=match.re is _NAMED_STEP and bool(match.group(2)))


def _as_step(digits: str, *, thousands: bool = False) -> int | None:
    if len(digits) > 30:
        return None
    step = int(digits) * (1000 if thousands else 1)
    return step if step <= _STEP_MAX else None


def _unique_names(named: dict[str, str | None]) -> dict[str, str]:
    depths = {path: 1 for path, name in named.items() if name is None}
    while True:
        names = {path: name or _tail(path, depths[path]) for path, name in named.items()}
        clashing = {
            path
            for path, depth in depths.items()
            if depth < path.count("/")
            and any(_looks_below(names[path], n) or _looks_below(n, names[path]) for p, n in names.items() if p != path)
        }
        if not clashing:
            return names
        for path in clashing:
            depths[path] += 1


def _looks_below(name: str, other: str) -> bool:
    return name == other or name.startswith(other + "/")


def _tail(path: str, n_components: int) -> str:
    components = [c for c in path.split("/") if c]
    return "/".join(components[-n_components:]) or "root"


def _bounded(name: str) -> str:
    printable = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in name)
    if len(printable) <= RUN_CHARACTERS_MAX:
        return printable
    tail = hashlib.sha256(printable.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{printable[: RUN_CHARACTERS_MAX - 9]}~{tail}"
