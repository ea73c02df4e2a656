"""`ckptwatch run`: the daemon."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import ExitStack
from typing import Annotated

import typer

from monitor.backlog import Retried
from monitor.commands.console import (
    ConfigOption,
    DatabaseOption,
    database_overrides,
    load_config,
    root_overrides,
    set_up_logging,
)
from monitor.commands.environment import environment_errors
from monitor.config import Config, ConfigError, ConfigProblem
from monitor.daemon import Daemon, DaemonOptions, Ending
from monitor.pipeline import Recorded
from monitor.protect.protector import Protector
from monitor.protect_config import place_problem
from monitor.service import Service
from monitor.systemd import Watchdog

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

    def load() -> Config:
        settings = load_config(
            config,
            watch=root_overrides(roots),
            storage=database_overrides(db),
            serve={"listen": listen} if listen else {},
        )
        if not settings.watch.roots:
            message = "nothing to watch: name a directory, or set watch.roots in the configuration"
            raise ConfigError([ConfigProblem(path="watch.roots", message=message)])
        misplaced = place_problem(settings.protect, tuple(root.path for root in settings.watch.roots))
        if settings.protect.enabled and misplaced is not None:
            raise ConfigError([ConfigProblem(path="protect.directory", message=misplaced)])
        return settings

    watchdog = Watchdog()

    protecting = ExitStack()  # of the daemon that runs: another one may be told to protect otherwise

    def build(settings: Config, ending: Ending | None) -> Daemon:
        protecting.close()
        protector = Protector(settings.protect) if settings.protect.enabled else None
        kept = None if protector is None else protector.shelf.path_of
        options = DaemonOptions(is_damaged=ending is Ending.DAMAGED, kept=kept)

        def on_event(event: Recorded | Retried) -> None:
            if protector is not None and isinstance(event, Recorded):
                protector.note_recorded(daemon.database, event)

        daemon = Daemon(settings, options=options, on_event=on_event, on_progress=watchdog.progress)
        if protector is not None:
            protector.note_stored(daemon.database)
            protector.start()
            protecting.callback(protector.stop)
        return daemon

    service = Service(load, build)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    _listen_for_hangup(service)
    with environment_errors(), protecting:
        service.run()
    log.info("stopped")


def _listen_for_hangup(service: Service) -> None:
    """Let SIGHUP mean what the one who sends it means: a closing terminal ends us, a service manager wants a reload."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return  # nohup
    has_terminal = os.isatty(0)
    signal.signal(signal.SIGHUP, lambda *_: service.stop() if has_terminal else service.reload())
