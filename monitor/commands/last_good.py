"""`ckptwatch last-good`: the checkpoint to resume from."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from monitor.commands.console import CommandError, ConfigOption, DatabaseOption, ExitCode, JsonOption, print_json
from monitor.commands.environment import existing_database, kept_copies
from monitor.stored_views import StoredViews


def last_good(
    run: Annotated[str, typer.Argument(help="The run's name, as `ckptwatch runs` prints it.")],
    config: ConfigOption = None,
    db: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Print the path of the newest checkpoint that is good and still on disk; exit 1 when there is none.

    Where `protect` kept a copy of a newer one whose original is gone, it is the path of the copy.
    Example: python train.py --resume "$(ckptwatch last-good llama/seed1)"
    """
    with existing_database(config, db) as database:
        view = StoredViews(database, kept=kept_copies(config)).view(run)
    if view is None:
        raise CommandError(f"there is no run {run!r}; `ckptwatch runs` lists them", ExitCode.USAGE)
    good = view.last_good
    if json:
        is_copy = good is not None and good.path not in {s.path for s in view.recent}
        told = {"step": good.step if good else None, "path": good.path if good else None, "protected": is_copy}
        print_json({"run": run, **told})
    elif good is not None:
        sys.stdout.write(good.path + "\n")
    if good is None:
        raise CommandError(f"no good checkpoint of {run} is left on disk", ExitCode.BAD_NEWS)
