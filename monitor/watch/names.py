"""Which names can be checkpoints: default patterns, excludes and marks. Pure text, no file is touched."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from monitor.read.unfinished import is_temporary

DEFAULT_PATTERNS: tuple[str, ...] = (
    "*.safetensors",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.bin",
    "*.npz",
    "*.npy",
    "*.keras",
    "*.h5",
    "*.tar",  # the old PyTorch habit, mostly as .pth.tar
    "*.joblib",
    "*.joblib.gz",
    "*.joblib.z",
    "*.joblib.bz2",
    "*.joblib.xz",
    "*.pkl",
    "*.pkl.gz",
    "*.pkl.z",
    "*.pickle",
    "*.skops",
    "*.onnx",
    "*.gguf",
    "*.msgpack",
    "*.ubj",
    "*.xgb",
    "*.lgb",
    "*.lgbm",
    "xgb*.json",  # .json and .txt say too little without the rest of the name
    "lgb*.txt",
    "lightgbm*.txt",
    "*.snapshot_iter_*",  # LightGBM's own, while it trains
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
    "meta.pkl",  # the vocabulary beside training data
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
    _marks: re.Pattern[str]
    _takes_any_unit: bool

    @classmethod
    def compile(
        cls,
        patterns: Sequence[str] | None = None,
        excludes: Sequence[str] | None = None,
        marks: Sequence[str] = (),
    ) -> NameRules:
        """Compile patterns (None: DEFAULT_PATTERNS), excludes (None: DEFAULT_EXCLUDES) and the marks of units."""
        wanted = DEFAULT_PATTERNS if patterns is None else tuple(patterns)
        excluded = DEFAULT_EXCLUDES if excludes is None else tuple(excludes)
        directories = [p.removesuffix("/") for p in excluded if p.endswith("/")]
        files = [p for p in excluded if not p.endswith("/")]
        return cls(
            *_split(wanted),
            *_split(files),
            *_split([*directories, *files]),  # an exclude without a slash at its end may name a directory as well
            _compiled(marks),
            patterns is None or tuple(patterns) == DEFAULT_PATTERNS,
        )

    def takes_file(self, name: str, relative_path: str) -> bool:
        """Say whether a file may be a checkpoint, by its base name and its path below the root."""
        if not (self._wanted.fullmatch(name) or self._wanted_paths.fullmatch(relative_path)):
            return False
        if is_temporary(name):
            return False
        return not self._is_excluded(name, relative_path)

    def takes_directory(self, name: str, relative_path: str) -> bool:
        """Say whether a directory is to be looked into."""
        if is_temporary(name, is_directory=True):
            return False
        return not (
            self._excluded_directories.fullmatch(name) or self._excluded_directory_paths.fullmatch(relative_path)
        )

    def takes_unit(self, unit_name: str, files: Collection[str], relative_directory: str) -> bool:
        """Say whether a checkpoint of several files is wanted: by its own name, or by that of any file in it.

        `relative_directory` is where the files are, below the root, with a slash at its end or empty. The default
        patterns want every unit; an exclude leaves it out where it leaves out all of its files.
        """
        kept = [f for f in files if not self._is_excluded(f, relative_directory + f)]
        if files and not kept:
            return False
        if self._takes_any_unit:
            return True
        return any(
            self._wanted.fullmatch(name) or self._wanted_paths.fullmatch(relative_directory + name)
            for name in (unit_name, *kept)
        )

    def takes_path(self, relative_path: str) -> bool:
        """Say whether a file here may be a checkpoint, or complete one, judged by names below the root alone."""
        *parents, name = relative_path.split("/")
        for i, parent in enumerate(parents):
            if not self.takes_directory(parent, "/".join(parents[: i + 1])):
                return False
        return self.takes_file(name, relative_path) or (
            self._marks.fullmatch(name) is not None and not is_temporary(name)
        )

    def _is_excluded(self, name: str, relative_path: str) -> bool:
        return bool(self._excluded.fullmatch(name) or self._excluded_paths.fullmatch(relative_path))


_NOTHING = re.compile(r"(?!)")


def _split(patterns: Sequence[str]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    names = [p for p in patterns if "/" not in p]
    paths = [p.removeprefix("./").removeprefix("/") for p in patterns if "/" in p]
    return _compiled(names), _compiled(paths)


def _compiled(patterns: Sequence[str]) -> re.Pattern[str]:
    if not patterns:
        return _NOTHING
    return re.compile("|".join(fnmatch.translate(p) for p in patterns), re.IGNORECASE)
