"""How long one scrape of `/metrics` takes near the limit of 10 000 series, over a real connection.

Figure to reach: 100 ms. The database is left out (storage_queries.py measures it); the first scrape, which works out
the statistics of every newest snapshot, is printed apart from the ones that follow.

    python -m benchmarks.metrics_scrape
"""

from __future__ import annotations

import gzip
import http.client
import statistics
import time

from prometheus_client import CollectorRegistry

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
    """Print a table of times for the plain text, with and without gzip, and for OpenMetrics."""
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
    try:
        print(f"{'asked for':34} {'series':>7} {'KiB':>7} {'first':>9} {'median':>9} {'worst':>9}")
        for label, headers in (
            ("text", {}),
            ("text, gzip", {"Accept-Encoding": "gzip"}),
            ("OpenMetrics, gzip", {"Accept": "application/openmetrics-text;version=1.0.0", "Accept-Encoding": "gzip"}),
        ):
            times, body = _scrape(server.port, headers)
            text = gzip.decompress(body) if headers else body
            n_series = sum(not line.startswith(b"#") for line in text.splitlines())
            later = times[1:]
            print(
                f"{label:34} {n_series:7} {len(body) / 1024:7.0f} {times[0] * 1e3:6.1f} ms"
                f" {statistics.median(later) * 1e3:6.1f} ms {max(later) * 1e3:6.1f} ms"
            )
    finally:
        server.stop()


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
