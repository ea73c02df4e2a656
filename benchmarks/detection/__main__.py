"""How many faults are found, how soon, and how many false alarms there are: `make bench-detection`.

    python -m benchmarks.detection                     two seeds, a few minutes
    python -m benchmarks.detection --full --write      ten seeds, and the results into benchmarks/results
    python -m benchmarks.detection --full --journal detection.jsonl
                                                       the same in pieces: what is in the journal is not run again
    python -m benchmarks.detection --settings gru_sums --faults "" rate_times_100 --verbose

Goals: at least 95 % of the visible faults found, in the median at most one checkpoint late, at most one false alert
per 1000 sound checkpoints; and better on both than SageMaker Debugger's published defaults on the same trainings.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from benchmarks.detection import journal, markdown, report
from benchmarks.detection.trials import Result, Trial, planned, run

RESULTS = Path(__file__).parent.parent / "results" / "detection.json"


def main() -> None:
    """Run the trials in processes of their own, print the tables; exit 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="ten seeds instead of two")
    parser.add_argument("--seeds", type=int, help="how many seeds, from 0")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--settings", nargs="+")
    parser.add_argument("--faults", nargs="+", help='names of faults, "" for the sound training')
    parser.add_argument(
        "--one-in", type=int, help="each seed tries one in so many pairs of setting and fault; 9, full 3, named 1"
    )
    parser.add_argument("--journal", type=Path, help="keep each result in this file as soon as it is there")
    parser.add_argument("--report", action="store_true", help="train nothing, report what is in the journal")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/detection.md")
    parser.add_argument("--verbose", action="store_true", help="print every false alarm and every fault not found")
    chosen = parser.parse_args()
    seeds = range(chosen.first_seed, chosen.first_seed + (chosen.seeds or (10 if chosen.full else 2)))
    named = chosen.settings is not None or chosen.faults is not None
    trials = [
        trial
        for trial in planned(seeds, one_in=chosen.one_in or (1 if named else 3 if chosen.full else 9))
        if (chosen.settings is None or trial.setting in chosen.settings)
        and (chosen.faults is None or trial.fault in chosen.faults)
    ]
    known = journal.read(chosen.journal) if chosen.journal else {}
    results = [known[t] for t in trials if t in known]
    if not chosen.report:
        results += _run([t for t in trials if t not in known], chosen.jobs, chosen.journal)
    place = {trial: number for number, trial in enumerate(trials)}
    document = report.document(sorted(results, key=lambda result: place[result.trial]))
    print(markdown.text(document) if chosen.markdown else report.text(document))
    if chosen.verbose:
        print(report.details(results))
    if chosen.write:
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    sys.exit(0 if document["goals_reached"] else 1)


def _run(trials: list[Trial], n_jobs: int, kept: Path | None) -> list[Result]:
    results = []
    with ProcessPoolExecutor(n_jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for number, future in enumerate(as_completed([pool.submit(run, trial) for trial in trials]), 1):
            results.append(future.result())
            if kept is not None:
                journal.append(kept, results[-1])
            if sys.stderr.isatty():
                print(f"\r{number} of {len(trials)} trainings", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return results


if __name__ == "__main__":
    main()
