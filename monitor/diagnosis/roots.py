"""Whether the watched directories are there and readable, on which filesystem, and what is found in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from monitor.config import WatchConfig
from monitor.diagnosis.finding import Diagnosis, problem, warning, well
from monitor.read.directories import claim_units, unit_marks
from monitor.watch.events import inotify_watches_left
from monitor.watch.filesystem import NETWORK, filesystem_type, kind_of_type
from monitor.watch.names import DEFAULT_EXCLUDES, NameRules
from monitor.watch.scanner import ScanLimits, Scanner, ScanResult

LISTING = ScanLimits(files_max=100_000, names_max=1_000_000, depth_max=32)
WATCH_LIMIT_PATH = "/proc/sys/fs/inotify/max_user_watches"
_NAMED_MAX = 3


def diagnose_roots(config: WatchConfig, *, now: float) -> Sequence[Diagnosis]:
    """Look at every root as the daemon would: bounded in files and names; opens no file in them."""
    if not config.roots:
        return [
            warning("roots", "the configuration names no directory", "set watch.roots, or name one: ckptwatch run DIR")
        ]
    rules = NameRules.compile(config.patterns, (*DEFAULT_EXCLUDES, *config.excludes), unit_marks())
    found = [finding for root in config.roots for finding in _root(root.path, rules, config, now)]
    return [*found, _watches()]


def _root(path: str, rules: NameRules, config: WatchConfig, now: float) -> list[Diagnosis]:
    subject = f"root {path}"
    reason = _unusable(path)
    if reason is not None:
        return [problem(subject, reason, "the daemon waits for it; create it, or let this user read it")]
    return [
        _contents(subject, Scanner(path, rules, limits=LISTING, claims_of=claim_units).scan(now)),
        _kind(subject, path, config),
    ]


def _unusable(path: str) -> str | None:
    if not os.path.exists(path):
        return "does not exist"
    if not os.path.isdir(path):
        return "is no directory"
    if not os.access(path, os.R_OK | os.X_OK):
        return "may not be read by this user"
    return None


def _contents(subject: str, scan: ScanResult) -> Diagnosis:
    n_found = len(scan.entries) + len(scan.units)
    if scan.problems:
        shown = "; ".join(f"{p.path}: {p.problem.message}" for p in scan.problems[:_NAMED_MAX])
        return warning(subject, f"{len(scan.problems)} places cannot be looked at: {shown}", "mend what each says")
    if scan.truncated:
        return warning(subject, f"holds more than {n_found:,} files", "name smaller roots, or narrow watch.patterns")
    if n_found == 0:
        return warning(
            subject,
            f"holds no checkpoint yet among {scan.n_names:,} names",
            "nothing to do before training saves; else compare watch.patterns with the names of the files",
        )
    n_unread = sum(not os.access(path, os.R_OK) for path in _files_of(scan))
    if n_unread:
        return problem(subject, f"{n_unread} checkpoint files may not be read by this user", "let this user read them")
    return well(subject, f"{n_found:,} checkpoints among {scan.n_names:,} names")


def _files_of(scan: ScanResult) -> list[str]:
    return [file.path for file in scan.entries] + [file.path for unit in scan.units for file in unit.files]


def _kind(subject: str, path: str, config: WatchConfig) -> Diagnosis:
    name = filesystem_type(path) or "unknown"
    if kind_of_type(name) == NETWORK:
        return warning(
            subject,
            f"lies on {name}: other machines' writes give no events, so it is scanned every "
            f"{config.scan_interval_seconds:g} s and a file counts as whole after {config.settle_seconds_network:g} s",
            "lower watch.scan_interval_seconds where that is too slow",
        )
    if config.polling == "always":
        return well(subject, f"lies on {name}; scanned every {config.scan_interval_seconds:g} s, as configured")
    return well(subject, f"lies on {name}; events make a scan come at once")


def _watches() -> Diagnosis:
    limit = _number(WATCH_LIMIT_PATH)
    if inotify_watches_left():
        return well(
            "inotify", "watches can be added" if limit is None else f"watches can be added, up to {limit:,} a user"
        )
    return warning(
        "inotify",
        "the limit of watches is reached: checkpoints are found by scans alone, only later",
        f"sysctl fs.inotify.max_user_watches={2 * (limit or 65_536)}",
    )


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
