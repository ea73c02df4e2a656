"""`ckptwatch last-good`: the checkpoint to resume from."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from monitor.commands.console import CommandError, ConfigOption, DatabaseOption, ExitCode, JsonOption, print_json
from monitor.commands.environment import existing_database
from monitor.stored_views import StoredViews


def last_good(
    run: Annotated[str, typer.Argument(help="The run's name, as `ckptwatch runs` prints it.")],
    config: ConfigOption = None,
    db: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Print the path of the newest checkpoint that is good and still on disk; exit 1 when there is none.

    Example: python train.py --resume "$(ckptwatch last-good llama/seed1)"
    """
    with existing_database(config, db) as database:
        view = StoredViews(database).view(run)
    if view is None:
        raise CommandError(f"there is no run {run!r}; `ckptwatch runs` lists them", ExitCode.USAGE)
    good = view.last_good
    if json:
        print_json({"run": run, "step": good.step if good else None, "path": good.path if good else None})
    elif good is not None:
        sys.stdout.write(good.path + "\n")
    if good is None:
        raise CommandError(f"no good checkpoint of {run} is left on disk", ExitCode.BAD_NEWS)
