"""Exporters from the section `export` of the configuration."""

from __future__ import annotations

import socket
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from alerts.transport import PostLimits
from monitor.export_config import ExportConfig
from monitor.show.push.otlp import OtlpExporter
from monitor.show.push.pusher import Exporter
from monitor.show.push.remote_write import RemoteWriteExporter, basic_authorization
from monitor.show.push.textfile import TextfileExporter


def build_exporters(
    config: ExportConfig, registry: CollectorRegistry, *, resolve: Callable[[str], str], clock: Callable[[], float]
) -> dict[str, Exporter]:
    """Return the configured exporters by name; `resolve` turns a reference into the secret."""
    built: dict[str, Exporter] = {}
    if config.textfile is not None:
        built["textfile"] = TextfileExporter(registry, config.textfile)
    remote = config.remote_write
    if remote is not None:
        authorization = None
        if remote.username is not None and remote.password is not None:
            authorization = basic_authorization(remote.username, resolve(remote.password))
        elif remote.bearer_token is not None:
            authorization = f"Bearer {resolve(remote.bearer_token)}"
        built["remote_write"] = RemoteWriteExporter(
            registry,
            remote.url,
            labels={"job": "ckptwatch", "instance": socket.gethostname(), **remote.labels},
            clock=clock,
            authorization=authorization,
            limits=PostLimits(allow_private=remote.allow_private),
        )
    if config.otlp is not None:
        built["otlp"] = OtlpExporter(
            registry,
            config.otlp.endpoint,
            headers={name: resolve(reference) for name, reference in config.otlp.headers.items()},
            attributes={"service.instance.id": socket.gethostname(), **config.otlp.attributes},
            clock=clock,
        )
    return built
