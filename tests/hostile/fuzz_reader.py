"""Reads damaged checkpoints one after the other, confined and watched, and says what no reader may do.

Run by tests/hostile/fuzz.py as `python -m tests.hostile.fuzz_reader SEEDS FORMAT SEED FIRST COUNT DIRECTORY`. For every
input it writes `begin NUMBER`, then `bad NUMBER REASON` or nothing, at last `end`, and a tally of the kinds of errors.
"""

from __future__ import annotations

import codecs
import json
import os
import pkgutil
import random
import resource
import shutil
import sys
import traceback
import warnings
from collections import Counter
from importlib import import_module
from pathlib import Path

import monitor.read
from monitor.read.reader import ReadError, ReadLimits
from monitor.read.registry import open_path
from tests.hostile.mutations import damaged
from tests.hostile.seeds import LONG_AGO_NS, Seed, load
from tests.support.audit import audited

ADDRESS_SPACE_BYTES_MAX = 2 * 2**30
RESIDENT_BYTES_MAX = 512 * 2**20
MESSAGE_CHARACTERS_MAX = 1000  # of a unit, whose message names its file; the worker shortens it


class ContractError(Exception):
    """What was read breaks the contract of readers."""


def chosen(seeds: list[Seed], seed_number: int, number: int) -> tuple[Seed, dict[str, bytes | None]]:
    """Return the seed and the changed files of an input; the same for the same numbers."""
    chooser = random.Random(f"{seed_number}/{number}")
    seed = seeds[number % len(seeds)]
    return seed, damaged(seed, seeds, chooser)


def put(base: Path, files: dict[str, bytes | None]) -> None:
    """Write, or remove where None, files below a directory."""
    for name, data in files.items():
        path = base / name
        if data is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))


def read_all(path: Path) -> None:
    """Read every value; raise ContractError where a contract is broken."""
    limits = ReadLimits()
    with open_path(str(path), limits) as opened:
        names = set()
        for spec in opened.checkpoint.tensors:
            if not spec.name.isprintable() or spec.name in names:
                raise ContractError(f"a name is not printable or not unique: {spec.name!r:.100}")
            names.add(spec.name)
            if spec.problem is not None and not (spec.problem.isprintable() and spec.problem):
                raise ContractError(f"a problem is not printable: {spec.problem!r:.100}")
            place = 0
            for chunk in opened.checkpoint.chunks(spec):
                if chunk.values.nbytes > limits.chunk_bytes_max or chunk.offset_elements != place:
                    raise ContractError(f"a chunk of {spec.name} is too large or out of order")
                place += chunk.values.size
            if spec.problem is None and place != spec.n_elements:
                raise ContractError(f"{place} of {spec.n_elements} elements came of {spec.name}")
        opened.file.verify_unchanged()


def import_readers() -> None:
    """Import all that reading takes, so that what is imported later is imported for the sake of a file's content."""
    for module in pkgutil.walk_packages(monitor.read.__path__, "monitor.read."):
        import_module(module.name)
    import_module("h5py")
    import_module("unicodedata")  # of the interpreter itself: needed when it first meets a name that is not ASCII
    for encoding in ("raw_unicode_escape", "unicode_escape", "latin-1"):
        codecs.lookup(encoding)


def confine() -> None:
    """Bound memory as the product's worker does, and let no core be dumped."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES_MAX, ADDRESS_SPACE_BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def resident_bytes_peak() -> int:
    """Return the peak resident memory since it was last asked for."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def try_one(path: Path) -> tuple[str, str | None]:
    """Read one checkpoint; return the kind of the outcome and what is wrong with the reader, if anything."""
    try:
        with audited() as events:
            read_all(path)
        kind = "ok"
    except ReadError as error:
        kind, message = error.kind.value, str(error)
        if not (message.isprintable() and 0 < len(message) <= MESSAGE_CHARACTERS_MAX):
            return kind, f"the message has {len(message)} characters or is not printable: {message!r:.200}"
    except Exception as error:  # that none comes here is what is tested
        frames = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-4:]]
        return "exception", f"{type(error).__name__}: {error!s:.200} at {' '.join(frames)}"
    return kind, f"it did {events[:3]}" if events else None


def main(arguments: list[str]) -> None:
    directory = Path(arguments[5])
    seeds = load(Path(arguments[0]))[arguments[1]]
    seed_number, first, count = map(int, arguments[2:5])
    import_readers()
    warnings.simplefilter("ignore")
    for seed in seeds:
        base = directory / seed.variant
        shutil.rmtree(base, ignore_errors=True)
        put(base, dict(seed.files))
        read_all(base / seed.target)  # what libraries import when first used is imported now
    confine()
    tally: Counter[str] = Counter()
    resident_bytes_peak()
    for number in range(first, first + count):
        print("begin", number, flush=True)
        seed, files = chosen(seeds, seed_number, number)
        base = directory / seed.variant
        put(base, files)
        kind, reason = try_one(base / seed.target)
        if (peak := resident_bytes_peak()) > RESIDENT_BYTES_MAX:
            reason = reason or f"{peak >> 20} MiB were resident"
        if reason:
            print("bad", number, reason.replace("\n", " "), flush=True)
        put(base, {name: seed.files[name] for name in files})
        tally[kind] += 1
    print("end", json.dumps(tally), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
