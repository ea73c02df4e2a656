"""Run as a program: read one file again and again while somebody overwrites it: `keras_reads.py PATH`.

Ends when a line comes on standard input; prints how often the file was whole and how often in the midst of a save.
Fails when values of two saves were mixed, or when a file that nobody touched meanwhile was called damaged.
"""

from __future__ import annotations

import select
import sys
from pathlib import Path

import numpy as np

from monitor.read.reader import ReadError
from monitor.watch.scanner import stat_file
from storage.records import ProblemKind
from tests.support.reading import read_whole

LATER = {ProblemKind.INCOMPLETE, ProblemKind.CHANGED, ProblemKind.VANISHED}  # what is tried again


def read(path: Path) -> bool:
    """Read the file once; return whether it was whole."""
    before = stat_file(str(path))
    try:
        whole = read_whole(path)
    except ReadError as error:
        # Half a structure may look like any kind of damage.
        if error.kind not in LATER and stat_file(str(path)) == before:
            raise
        return False
    values = [array for array in whole.values.values() if array.size > 1]
    found = {float(v) for array in values for v in np.unique(array)}
    if len(values) != 3 * 8 or found != {float(whole.step or 0)}:
        raise SystemExit(f"values of two saves were mixed: step {whole.step}, values {sorted(found)}")
    return True


def main() -> None:
    path = Path(sys.argv[1])
    counts = {True: 0, False: 0}
    while not select.select([sys.stdin], [], [], 0)[0]:
        counts[read(path)] += 1
    assert read(path), "the last save is not whole"
    print(counts[True], counts[False])


if __name__ == "__main__":
    main()
