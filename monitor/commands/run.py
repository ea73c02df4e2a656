"""`ckptwatch run`: the daemon."""

from __future__ import annotations

import logging
import os
import signal
from typing import Annotated

import typer

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
        return settings

    watchdog = Watchdog()

    def build(settings: Config, ending: Ending | None) -> Daemon:
        options = DaemonOptions(is_damaged=ending is Ending.DAMAGED)
        return Daemon(settings, options=options, on_progress=watchdog.progress)

    service = Service(load, build)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    _listen_for_hangup(service)
    with environment_errors():
        service.run()
    log.info("stopped")


def _listen_for_hangup(service: Service) -> None:
    """Let SIGHUP mean what the one who sends it means: a closing terminal ends us, a service manager wants a reload."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return  # nohup
    has_terminal = os.isatty(0)
    signal.signal(signal.SIGHUP, lambda *_: service.stop() if has_terminal else service.reload())
