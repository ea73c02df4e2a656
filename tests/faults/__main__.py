"""The long tier of reliability: `make reliability`, or `python -m tests.faults` with parts and counts.

Kills daemons at every failpoint and at random moments, damages checkpoints of every format, and lets a daemon work for
a long time at many times the usual load. What was found is written into benchmarks/results/reliability.json, a part at
a time, each with its date: what is not run again keeps its older figures. Ends with 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.faults.kills import EVERYDAY, chain
from tests.faults.launcher import Launcher
from tests.faults.soak import soak
from tests.hostile.fuzz import fuzz
from tests.hostile.seeds import load, write_all
from tests.support.daemons import REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results" / "reliability.json"
PLACES_A_ROUND = 6
RANDOM_KILLS_A_ROUND = 12


def note(part: str, figures: dict[str, Any]) -> None:
    """Put the figures of one part into the results file, and print them."""
    document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    document[part] = {"date": datetime.now(UTC).date().isoformat(), "n_processors": os.cpu_count(), **figures}
    RESULTS.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    print(part, json.dumps(document[part]), flush=True)


def kills(n_each: int, n_random: int, seconds_max: float, *, adds: bool) -> bool:
    """Kill at each place `n_each` times and at `n_random` random moments, as long as time is left; say if all held.

    With `adds` the kills of earlier runs count too.
    """
    until = time.monotonic() + seconds_max
    before = json.loads(RESULTS.read_text()).get("kills", {}) if adds and RESULTS.exists() else {}
    total: Counter[str] = Counter(before.get("n_kills", {}))
    sums: Counter[str] = Counter(before.get("sums", {}))
    wrong: list[str] = list(before.get("wrong", []))
    with Launcher() as launcher:
        while time.monotonic() < until:
            waiting = [p for p in EVERYDAY if total[p] < n_each]
            places = sorted(waiting, key=lambda p: total[p])[:PLACES_A_ROUND]
            moments = max(min(RANDOM_KILLS_A_ROUND, n_random - total["random"]), 0)
            if not places and not moments:
                break
            with tempfile.TemporaryDirectory() as directory:
                done = chain(Path(directory), launcher, places=places, n_random=moments, seed=total.total())
            total += done.n_kills
            sums["checkpoints"] += done.n_saved
            sums["rows_compared"] += done.n_rows
            sums["messages"] += done.n_messages
            sums["messages_twice"] += done.n_messages_twice
            wrong += done.wrong
            note("kills", {"n_kills": total, "n_places": len(EVERYDAY), "sums": sums, "wrong": wrong[:20]})
    return not wrong


def damage(n_inputs: int, seed: int) -> bool:
    """Read `n_inputs` damaged checkpoints, spread evenly over the formats; say if no reader broke its contract."""
    seeds = Path(tempfile.gettempdir()) / f"ckptwatch-seeds-{os.getuid()}"
    write_all(seeds)
    names = sorted(load(seeds))
    counts: dict[str, int] = {}
    findings: list[str] = []
    kinds: Counter[str] = Counter()
    for name in names:
        with tempfile.TemporaryDirectory() as directory:
            share = -(-n_inputs // len(names))
            campaign = fuzz(seeds, name, seed_number=seed, n_inputs_max=share, directory=Path(directory))
        counts[name] = campaign.n_inputs
        kinds += campaign.kinds
        findings += [f"{name} {number}: {reason}"[:300] for number, reason in campaign.findings.items()]
        note(
            "damaged_inputs",
            {"n_inputs": sum(counts.values()), "by_format": counts, "outcomes": kinds, "seed": seed, "wrong": findings},
        )
    return not findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="kills,damage,soak")
    parser.add_argument("--each", type=int, default=20, help="kills at each failpoint")
    parser.add_argument("--random", type=int, default=1000, help="kills at random moments")
    parser.add_argument("--kill-seconds", type=float, default=6 * 3600.0, help="begin no round of kills after so long")
    parser.add_argument("--add", action="store_true", help="let the kills of earlier runs count")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="damaged checkpoints, over all formats")
    parser.add_argument("--seed", type=int, default=20260301)
    parser.add_argument("--soak-seconds", type=float, default=3600.0)
    options = parser.parse_args()
    held = True
    parts = options.parts.split(",")
    if "kills" in parts:
        held &= kills(options.each, options.random, options.kill_seconds, adds=options.add)
    if "damage" in parts:
        held &= damage(options.inputs, options.seed)
    if "soak" in parts:
        with tempfile.TemporaryDirectory() as directory:
            figures = soak(Path(directory), options.soak_seconds)
        note("soak", figures)
        held &= not figures["wrong"]
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
