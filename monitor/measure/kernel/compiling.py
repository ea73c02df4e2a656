"""The decorators of compiled code, and where it is kept between processes.

Numba notices when the file of an entry point changes, not when one of the files it calls into does. So the cache
directory is named after a hash over all of them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numba

from monitor.measure.compile_cache import configure_compile_cache

FAST = {"reassoc", "nsz", "contract", "arcp"}  # never nnan or ninf: the values are not ours


def _source_hash(directory: Path) -> str:
    """Return a short hash over the sources that end up in compiled code, this package and the constants it takes."""
    digest = hashlib.sha256()
    for source in [*sorted(directory.glob("*.py")), directory.parent / "histogram.py", directory.parent / "sketch.py"]:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _choose_cache() -> bool:
    """Point Numba to our cache; say whether there is one."""
    try:
        directory = configure_compile_cache(_source_hash(Path(__file__).parent))
    except OSError:  # installed without sources, as in a zip file
        return False
    if directory is None:
        return False
    numba.config.CACHE_DIR = str(directory)  # type: ignore[attr-defined]
    return True


_CACHED = _choose_cache()

jit = numba.njit(nogil=True, fastmath=FAST)
exact_jit = numba.njit(nogil=True)  # where the order of operations is part of the method
entry = numba.njit(nogil=True, fastmath=FAST, cache=_CACHED)  # what Python calls; compiled code is kept for these
