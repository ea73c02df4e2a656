"""Where compiled kernels are kept between processes; must not import Numba.

Compiling takes seconds, loading a compiled kernel a tenth of one. What lies in the cache is machine code that will be
run, so a directory that another user could write to is not used. Numba's own index carries the processor's name and
features, so code compiled for another machine on a shared home is never loaded.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path


def compile_cache_directory(environment: Mapping[str, str], platform: str, home: Path) -> Path:
    """Return the place for compiled kernels in the user's cache directory, as the platform has it."""
    if chosen := environment.get("CKPTWATCH_COMPILE_CACHE"):
        return Path(chosen)
    if platform == "darwin":
        return home / "Library" / "Caches" / "ckptwatch" / "kernels"
    base = environment.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else home / ".cache") / "ckptwatch" / "kernels"


def usable(directory: Path) -> bool:
    """Create the directory if need be; say whether it is writable, our own, and nobody else's to write."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError:
        return False
    own = status.st_uid == os.geteuid()
    return own and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and os.access(directory, os.W_OK | os.X_OK)


def configure_compile_cache(version: str) -> Path | None:
    """Return the directory for kernels of this version, None when there is none (then every process compiles)."""
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home, as in some containers
        home = Path(os.devnull)
    base = compile_cache_directory(os.environ, sys.platform, home)
    return base / version if usable(base) and usable(base / version) else None
