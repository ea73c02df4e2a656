"""Tell the service manager how we are, by its notification protocol (sd_notify(3)); silent where nobody listens.

A few datagrams of text to the socket that `NOTIFY_SOCKET` names. Must never fail: a daemon that cannot say that it is
well still is.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

PING_SECONDS = 5.0


def notify(state: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send one or several `NAME=VALUE` lines; return whether a service manager took them."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address[0] == "@":  # the abstract namespace
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(1.0)
        sender.connect(address)
        sender.send(state.encode("utf-8", "backslashreplace"))
        return True
    return False


def reloading(monotonic: Callable[[], float] = time.monotonic) -> str:
    """Return the state that announces a reload; READY=1 has to follow."""
    return f"RELOADING=1\nMONOTONIC_USEC={int(monotonic() * 1e6)}"


class Watchdog:
    """Pings the service manager, at most every few seconds, whenever it is told that work went on.

    There is no timer: a loop that hangs must fall silent, so that it is restarted.
    """

    def __init__(
        self,
        send: Callable[[str], object] = notify,
        *,
        ping_seconds: float = PING_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._ping_seconds = ping_seconds
        self._monotonic = monotonic
        self._pinged_at = float("-inf")

    def progress(self) -> None:
        """Say that something was just done."""
        now = self._monotonic()
        if now - self._pinged_at >= self._ping_seconds:
            self._pinged_at = now
            self._send("WATCHDOG=1")
