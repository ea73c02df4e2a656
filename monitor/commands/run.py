"""`ckptwatch run`: the daemon."""

from __future__ import annotations

import logging
import signal
from typing import Annotated

import typer

from monitor.commands.console import (
    CommandError,
    ConfigOption,
    DatabaseOption,
    ExitCode,
    database_overrides,
    load_config,
    root_overrides,
    set_up_logging,
)
from monitor.commands.environment import environment_errors
from monitor.daemon import Daemon

log = logging.getLogger("ckptwatch")


def run(
    roots: Annotated[list[str] | None, typer.Argument(metavar="[ROOT]...", help="Directories to watch.")] = None,
    config: ConfigOption = None,
    db: DatabaseOption = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where to serve the page and /metrics (127.0.0.1:10470).")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every checkpoint.")] = False,
) -> None:
    """Watch directories, measure every checkpoint, store, judge, notify and serve, until stopped.

    Example: ckptwatch run /data/runs/llama --listen 127.0.0.1:10470
    """
    set_up_logging(verbose=verbose)
    settings = load_config(
        config,
        watch=root_overrides(roots),
        storage=database_overrides(db),
        serve={"listen": listen} if listen else {},
    )
    if not settings.watch.roots:
        raise CommandError(
            "nothing to watch: name a directory, or set watch.roots in the configuration", ExitCode.USAGE
        )
    with environment_errors():
        daemon = Daemon(settings)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: daemon.stop())
        try:
            daemon.start()
            where = f" on {daemon.url}" if daemon.url else ""
            log.info("watching %s%s", ", ".join(root.path for root in settings.watch.roots), where)
            daemon.run()
        finally:
            daemon.close()
    log.info("stopped")
