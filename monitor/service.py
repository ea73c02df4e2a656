"""Keep one daemon going: start it, read its configuration anew when asked, open its database anew when that is needed.

What the daemon itself can wait for (a full disk, a locked database) it waits for; this is for what takes a fresh start
of all parts. The first start may fail, and says why; later ones are tried until they succeed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from monitor import systemd
from monitor.config import Config, ConfigError
from monitor.daemon import Ending
from monitor.show.web.server import ServeError
from storage.errors import DatabaseError

RETRY_SECONDS = (1.0, 15.0)  # first and longest pause between tries to start again

log = logging.getLogger(__name__)


class Runnable(Protocol):
    """What the service needs of a daemon."""

    @property
    def url(self) -> str | None:
        """Return the address of its page, None without one."""
        ...

    def start(self) -> None:
        """Begin to serve, deliver and listen."""
        ...

    def run(self) -> Ending:
        """Work until there is a reason to end."""
        ...

    def stop(self) -> None:
        """Make `run` return, now or when it is called."""
        ...

    def interrupt(self) -> None:
        """Make `run` return, so that it may be called again."""
        ...

    def close(self) -> None:
        """Take everything down."""
        ...


class Service:
    """Runs daemons that `build` makes of what `load` reads, one after the other; `build` is told what ended the last.

    `stop` and `reload` may be called from a signal handler.
    """

    def __init__(
        self,
        load: Callable[[], Config],
        build: Callable[[Config, Ending | None], Runnable],
        *,
        announce: Callable[[str], object] = systemd.notify,
    ) -> None:
        self._load = load
        self._build = build
        self._announce = announce
        self._daemon: Runnable | None = None
        self._stopping = threading.Event()
        self._reload_asked = False

    def stop(self) -> None:
        """Make `run` return."""
        self._stopping.set()
        if self._daemon is not None:
            self._daemon.stop()

    def reload(self) -> None:
        """Read the configuration again, and go on with it if it is sound."""
        self._reload_asked = True
        if self._daemon is not None:
            self._daemon.interrupt()

    def run(self) -> None:
        """Work until `stop`; raises ConfigError, DatabaseError or ServeError when the first start fails."""
        config = self._load()
        self._daemon = self._started(config, None)
        try:
            while not self._stopping.is_set():
                ending = self._daemon.run()
                if ending in {Ending.STOPPED, Ending.DONE}:
                    return
                wanted: Config | None = config
                if ending is Ending.INTERRUPTED:
                    wanted = self._reloaded()
                if wanted is None:
                    continue
                self._daemon.close()
                self._daemon = None
                self._daemon, config = self._started_again(wanted, config, ending)
                if self._daemon is None:
                    return
        finally:
            self._announce("STOPPING=1")
            if self._daemon is not None:
                self._daemon.close()
                self._daemon = None

    def _reloaded(self) -> Config | None:
        """Return the configuration as it is now, None when it was not asked for or cannot be used."""
        if not self._reload_asked:
            return None
        self._reload_asked = False
        try:
            config = self._load()
        except ConfigError as error:
            for problem in error.problems:
                log.error("the configuration is not read again: %s", problem)  # noqa: TRY400 - the user's mistake
            return None
        log.info("reading the configuration again")
        self._announce(systemd.reloading())
        return config

    def _started(self, config: Config, ending: Ending | None) -> Runnable:
        daemon = self._build(config, ending)
        try:
            daemon.start()
        except BaseException:
            daemon.close()
            raise
        if self._stopping.is_set():
            daemon.stop()
        self._announce("READY=1")
        log.info(
            "watching %s%s",
            ", ".join(root.path for root in config.watch.roots),
            f" on {daemon.url}" if daemon.url else "",
        )
        return daemon

    def _started_again(self, wanted: Config, before: Config, ending: Ending) -> tuple[Runnable | None, Config]:
        """Start anew until it works; a configuration that cannot be built gives way to the one before."""
        pause, longest = RETRY_SECONDS
        while not self._stopping.is_set():
            try:
                return self._started(wanted, ending), wanted
            except (ConfigError, ValueError) as error:
                if wanted is before:
                    raise
                log.error("the new configuration cannot be used, going on with the one before: %s", error)  # noqa: TRY400
                wanted = before
            except (DatabaseError, ServeError) as error:
                log.error("cannot start again: %s; trying in %.0f s", error, pause)  # noqa: TRY400
                self._stopping.wait(pause)
                pause = min(pause * 2, longest)
        return None, before
