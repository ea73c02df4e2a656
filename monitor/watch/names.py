"""Which names can be checkpoints: temporary names, default patterns and excludes. Pure text, no file is touched."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

DEFAULT_PATTERNS: tuple[str, ...] = (
    "*.safetensors",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.bin",
    "*.npz",
    "*.npy",
    "*.tar",  # the old PyTorch habit, mostly as .pth.tar
)

# Files that lie beside a model's weights and hold none: random states, schedulers, arguments, token data. An
# optimizer's own file would alternate with the weights in the run's history and break every comparison.
DEFAULT_EXCLUDES: tuple[str, ...] = (
    "rng_state*.pth",
    "random_states_*",
    "training_args.bin",
    "scheduler.pt",
    "scheduler*.bin",
    "scaler.pt",
    "scaler*.bin",
    "sampler*.bin",
    "dl_state_dict*.bin",
    "optimizer.pt",
    "optimizer*.bin",
    "*.index.json",
    "train.bin",
    "val.bin",
    "valid.bin",
    "test.bin",
    "__pycache__/",
    "node_modules/",
    "site-packages/",
    "lost+found/",
    "wandb/",
    "mlruns/",
)

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


@dataclass(frozen=True, slots=True)
class NameRules:
    """Patterns compiled: what to take, what to leave out.

    A pattern is a shell pattern, compared without regard to case. Without a slash it is compared with the base name,
    with a slash inside with the path below the root (where `*` also crosses slashes); with a slash at its end it is
    about directories only, and what lies in them is left out too.
    """

    _wanted: re.Pattern[str]
    _wanted_paths: re.Pattern[str]
    _excluded: re.Pattern[str]
    _excluded_paths: re.Pattern[str]
    _excluded_directories: re.Pattern[str]
    _excluded_directory_paths: re.Pattern[str]

    @classmethod
    def compile(cls, patterns: Sequence[str] | None = None, excludes: Sequence[str] | None = None) -> NameRules:
        """Compile patterns (None: DEFAULT_PATTERNS) and excludes (None: DEFAULT_EXCLUDES)."""
        wanted = DEFAULT_PATTERNS if patterns is None else tuple(patterns)
        excluded = DEFAULT_EXCLUDES if excludes is None else tuple(excludes)
        directories = [p.removesuffix("/") for p in excluded if p.endswith("/")]
        files = [p for p in excluded if not p.endswith("/")]
        return cls(
            *_split(wanted),
            *_split(files),
            *_split([*directories, *files]),  # an exclude without a slash at its end may name a directory as well
        )

    def takes_file(self, name: str, relative_path: str) -> bool:
        """Say whether a file may be a checkpoint, by its base name and its path below the root."""
        if not (self._wanted.fullmatch(name) or self._wanted_paths.fullmatch(relative_path)):
            return False
        if is_temporary(name):
            return False
        return not (self._excluded.fullmatch(name) or self._excluded_paths.fullmatch(relative_path))

    def takes_directory(self, name: str, relative_path: str) -> bool:
        """Say whether a directory is to be looked into."""
        if is_temporary(name, is_directory=True):
            return False
        return not (
            self._excluded_directories.fullmatch(name) or self._excluded_directory_paths.fullmatch(relative_path)
        )

    def takes_path(self, relative_path: str) -> bool:
        """Say whether a file at this path below the root would be found by a scan, judged by names alone."""
        *parents, name = relative_path.split("/")
        for i, parent in enumerate(parents):
            if not self.takes_directory(parent, "/".join(parents[: i + 1])):
                return False
        return self.takes_file(name, relative_path)


_NOTHING = re.compile(r"(?!)")


def _split(patterns: Sequence[str]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    names = [p for p in patterns if "/" not in p]
    paths = [p.removeprefix("./").removeprefix("/") for p in patterns if "/" in p]
    return _compiled(names), _compiled(paths)


def _compiled(patterns: Sequence[str]) -> re.Pattern[str]:
    if not patterns:
        return _NOTHING
    return re.compile("|".join(fnmatch.translate(p) for p in patterns), re.IGNORECASE)
