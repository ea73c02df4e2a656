"""Metrics by Prometheus remote write 1.0, for receivers that cannot reach this machine (extra `push`).

The message is four nested protobuf messages, written here by hand: a code generator and its runtime would be fifty
times as much. https://prometheus.io/docs/specs/prw/remote_write_spec/
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module

from prometheus_client import CollectorRegistry

from alerts.transport import PostLimits, post_or_raise

BATCH_SERIES_MAX = 2000
STALE = struct.pack("<Q", 0x7FF0000000000002)  # the NaN by which Prometheus knows that a series has ended

Series = tuple[tuple[str, str], ...]  # label pairs in order, __name__ among them


class RemoteWriteExporter:
    """Posts every sample of the registry with the time of the push.

    `labels` are added to every series, job and instance among them. A series that was in the last push and is not in
    this one is marked as ended.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        url: str,
        *,
        labels: Mapping[str, str],
        clock: Callable[[], float],
        authorization: str | None = None,
        limits: PostLimits | None = None,
    ) -> None:
        self._registry = registry
        self._url = url
        self._labels = dict(labels)
        self._clock = clock
        self._limits = limits
        self._headers = {"Content-Encoding": "snappy", "X-Prometheus-Remote-Write-Version": "0.1.0"}
        if authorization is not None:
            self._headers["Authorization"] = authorization
        self._compress = import_module("cramjam").snappy.compress_raw
        self._last: frozenset[Series] = frozenset()

    def push(self) -> None:
        """Send what is true now; raise DeliveryError when a part was not taken."""
        values = {
            self._series(sample.name, sample.labels): struct.pack("<d", sample.value)
            for family in self._registry.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")  # as Prometheus leaves them out of a scrape of text
        }
        ended = self._last - values.keys()
        # Kept before sending: what a failed push may have delivered in part has to be ended one day as well.
        self._last = frozenset(values)
        self._post({**values, **dict.fromkeys(ended, STALE)})

    def finish(self) -> None:
        """Mark all series as ended."""
        ended, self._last = self._last, frozenset()
        self._post(dict.fromkeys(ended, STALE))

    def _post(self, values: Mapping[Series, bytes]) -> None:
        at = int(self._clock() * 1000)
        rows = sorted(values.items())
        for start in range(0, len(rows), BATCH_SERIES_MAX):
            body = bytes(self._compress(write_request(rows[start : start + BATCH_SERIES_MAX], at)))
            post_or_raise(
                self._url, body, content_type="application/x-protobuf", limits=self._limits, headers=self._headers
            )

    def _series(self, name: str, labels: Mapping[str, str]) -> Series:
        # An empty label is the same as none, and the protocol forbids it.
        pairs = {**self._labels, **labels, "__name__": name}
        return tuple(sorted((key, value) for key, value in pairs.items() if value))


def basic_authorization(username: str, password: str) -> str:
    """Return the value of the header for a user with a password."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def write_request(rows: Iterable[tuple[Series, bytes]], at_milliseconds: int) -> bytes:
    """Return the protobuf message WriteRequest: `rows` are label pairs and a value as eight little-endian bytes."""
    stamp = b"\x10" + _varint(at_milliseconds)
    request = bytearray()
    for series, value in rows:
        labels = b"".join(
            _field(0x0A, _field(0x0A, name.encode()) + _field(0x12, text.encode("utf-8", "backslashreplace")))
            for name, text in series
        )
        request += _field(0x0A, labels + _field(0x12, b"\x09" + value + stamp))
    return bytes(request)


def _field(tag: int, content: bytes) -> bytes:
    return bytes((tag,)) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    number &= 2**64 - 1  # a negative one takes ten bytes in two's complement
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*written, number))
