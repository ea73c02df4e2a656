"""How long one scrape of `/metrics` takes near the limit of 10 000 series, over a real connection.

Figure to reach: 100 ms. The database is left out (storage_queries.py measures it); the first scrape, which works out
the statistics of every newest snapshot, is printed apart from the ones that follow.

    python -m benchmarks.metrics_scrape
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import time
from pathlib import Path

from prometheus_client import CollectorRegistry

from benchmarks.figures import Figure, median, publish
from monitor.show.exporter import ExporterOptions, MetricsDetail, StorageCollector
from monitor.show.telemetry import Telemetry
from monitor.show.views import Measurement
from monitor.show.web.app import create_app
from monitor.show.web.guard import WebSettings
from monitor.show.web.server import serve_in_thread
from tests.support.show_records import NOW, MemorySources, drift, snapshot, summary, tensor, view

N_RUNS = 10
N_TENSORS = 150
N_SCRAPES = 30


def main() -> None:
    """Report times for the plain text, with and without gzip, and for OpenMetrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    json_path = parser.parse_args().json
    names = [f"transformer.h.{i // 6}.part{i % 6}.weight" for i in range(N_TENSORS)]
    measurement = Measurement(tensors=tuple(map(tensor, names)), drifts=tuple(map(drift, names)))
    runs = [f"run{i}" for i in range(N_RUNS)]
    memory = MemorySources(
        runs=[
            view(name, run=summary(name), newest=snapshot(i, name), recent=(snapshot(i, name),))
            for i, name in enumerate(runs, start=1)
        ],
        measurements=dict.fromkeys(range(1, N_RUNS + 1), measurement),
    )
    registry = CollectorRegistry()
    Telemetry(registry, version="benchmark")
    registry.register(StorageCollector(memory.sources, ExporterOptions(detail=MetricsDetail.TENSORS), lambda: NOW))
    server = serve_in_thread(
        create_app(WebSettings(), memory.sources, registry, lambda: None, lambda: NOW), "127.0.0.1", 0
    )
    figures: list[Figure] = []
    try:
        for label, headers in (
            ("text", {}),
            ("text, gzip", {"Accept-Encoding": "gzip"}),
            ("OpenMetrics, gzip", {"Accept": "application/openmetrics-text;version=1.0.0", "Accept-Encoding": "gzip"}),
        ):
            times, body = _scrape(server.port, headers)
            text = gzip.decompress(body) if headers else body
            n_series = sum(not line.startswith(b"#") for line in text.splitlines())
            name = f"scrape of {n_series} series, {label}"
            figures += [
                Figure(what=f"{name}, median", measured=1e3 * median(times[1:]), unit="ms", target=100),
                Figure(what=f"{name}, worst", measured=1e3 * max(times[1:]), unit="ms"),
                Figure(what=f"{name}, the first", measured=1e3 * times[0], unit="ms"),
                Figure(what=f"{name}, size", measured=len(body) / 1024, unit="KiB"),
            ]
    finally:
        server.stop()
    publish(figures, json_path)


def _scrape(port: int, headers: dict[str, str]) -> tuple[list[float], bytes]:
    times: list[float] = []
    body = b""
    for _ in range(N_SCRAPES):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        begin = time.perf_counter()
        connection.request("GET", "/metrics", headers=headers)
        body = connection.getresponse().read()
        times.append(time.perf_counter() - begin)
        connection.close()
    return times, body


if __name__ == "__main__":
    main()
