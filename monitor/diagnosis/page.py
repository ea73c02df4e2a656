"""Whether the address of the page and the metrics is free, taken by a daemon, or taken by something else."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Sequence

from monitor.config import ServeConfig
from monitor.diagnosis.finding import Diagnosis, problem, warning, well

CONNECT_SECONDS_MAX = 3.0
REPLY_BYTES_MAX = 4096
SUBJECT = "page"


def diagnose_page(config: ServeConfig) -> Sequence[Diagnosis]:
    """Try the address by binding it for a moment, and ask who answers where it is taken."""
    if not config.enabled:
        return [well(SUBJECT, "serve.enabled is off: no page and no metrics")]
    host, port = config.host, config.port
    where = f"{host}:{port}"
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return [well(SUBJECT, f"{where} is free")]
    except OSError as error:
        reason = error.strerror or str(error)
    alive = _ask(host, port, "/livez")
    if alive == "ok":
        ready = _ask(host, port, "/readyz")
        if ready == "ready":
            return [well(SUBJECT, f"a ckptwatch daemon serves {where} and is ready")]
        return [warning(SUBJECT, f"a ckptwatch daemon serves {where}: {ready}", "look at the daemon's log")]
    return [problem(SUBJECT, f"{where} cannot be served: {reason}", "choose another with --listen or serve.listen")]


def _ask(host: str, port: int, path: str) -> str:
    """Return the first line of the answer, "" where none comes."""
    connection = http.client.HTTPConnection(_reachable(host), port, timeout=CONNECT_SECONDS_MAX)
    try:
        connection.request("GET", path)
        return connection.getresponse().read(REPLY_BYTES_MAX).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
