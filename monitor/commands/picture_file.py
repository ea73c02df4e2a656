"""The file that a picture goes into: refused before anything is measured, written in one go."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from monitor.commands.console import CommandError, ExitCode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")


def check_output(output: Path, *, force: bool) -> None:
    """Refuse what could not be written, before anything is measured; raises CommandError."""
    if find_spec("matplotlib") is None:
        raise CommandError("pictures need Matplotlib: pip install 'ckptwatch[plots]'", ExitCode.USAGE)
    if output.suffix.lower() not in SUFFIXES:
        raise CommandError(f"{output}: a picture ends in {', '.join(SUFFIXES)}", ExitCode.USAGE)
    if output.exists() and not force:
        raise CommandError(f"{output} is there already; --force replaces it", ExitCode.USAGE)


def save(figure: Figure, output: Path) -> None:
    """Write a picture; raises CommandError when the file cannot be written."""
    try:
        figure.savefig(output)
    except OSError as error:
        raise CommandError(f"cannot write {output}: {error.strerror}", ExitCode.ENVIRONMENT) from error
    sys.stderr.write(f"ckptwatch: wrote {output}\n")
