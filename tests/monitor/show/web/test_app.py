from __future__ import annotations

import gzip
import html
import http.client
import json
import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from monitor.show.exporter import ExporterOptions, StorageCollector
from monitor.show.telemetry import Telemetry
from monitor.show.views import Course, ReferenceDrift, TensorMoment
from monitor.show.web.addresses import names_of, run_url, tensor_url
from monitor.show.web.app import create_app
from monitor.show.web.guard import SECURITY_HEADERS, WebSettings
from monitor.show.web.server import ServerHandle, serve_in_thread
from storage.records import AlertState, TensorPoint
from tests.support.show_records import NOW, MemorySources, alert, drift, snapshot, summary, tensor, view


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Site:
    """A real server on loopback over records in memory."""

    memory: MemorySources
    server: ServerHandle
    readiness: list[str | None] = field(default_factory=lambda: [None])

    def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        try:
            connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders()
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()


@contextmanager
def site(settings: WebSettings | None = None, memory: MemorySources | None = None) -> Iterator[Site]:
    memory = memory or MemorySources(runs=[view("gpt/a b"), view("other", run=summary("other"))], open_alerts=[alert()])
    registry = CollectorRegistry()
    Telemetry(registry, version="1.2.3")
    registry.register(StorageCollector(memory.sources, ExporterOptions(), lambda: NOW))
    readiness: list[str | None] = [None]
    app = create_app(settings or WebSettings(), memory.sources, registry, lambda: readiness[0], lambda: NOW)
    server = serve_in_thread(app, "127.0.0.1", 0)
    try:
        yield Site(memory, server, readiness)
    finally:
        server.stop()


@pytest.fixture(scope="module")
def shared() -> Iterator[Site]:
    with site() as running:
        yield running


def test_the_page_and_a_run_page_are_served(shared: Site) -> None:
    page = shared.ask("/")
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert b"gpt/a b" in page.body
    run_page = shared.ask(run_url("gpt/a b"))
    assert run_page.status == 200
    assert b"step-1200.safetensors" in run_page.body


def test_every_address_on_the_page_answers(shared: Site) -> None:
    addresses = set(re.findall(r'href="([^"]+)"', shared.ask("/").body.decode()))
    assert len(addresses) >= 7
    assert {address: shared.ask(address).status for address in addresses} == dict.fromkeys(addresses, 200)


def test_static_files_may_be_kept_and_pages_not(shared: Site) -> None:
    style = re.search(r'href="(/static/style[^"]+)"', shared.ask("/").body.decode())
    assert style is not None
    answer = shared.ask(style[1])
    assert answer.headers["content-type"] == "text/css; charset=utf-8"
    assert "immutable" in answer.headers["cache-control"]
    assert shared.ask("/").headers["cache-control"] == "no-store"


def test_the_documents_are_those_of_the_commands(shared: Site) -> None:
    runs = shared.ask("/api/v1/runs")
    assert runs.headers["content-type"] == "application/json"
    assert [run["run"] for run in runs.json] == ["gpt/a b", "other"]
    history = shared.ask("/api/v1/runs/gpt%2Fa%20b/history?limit=2").json
    assert history["run"] == "gpt/a b"
    assert [s["step"] for s in history["snapshots"]] == [1100, 1200]
    assert all("drift" not in s for s in history["snapshots"])
    assert [a["rule"] for a in shared.ask("/api/v1/alerts?state=firing&run=gpt").json] == ["nonfinite"]
    assert shared.ask("/api/v1/alerts?state=resolved").json == []


def test_drift_is_told_from_the_reference_that_is_asked_for() -> None:
    measured = snapshot(12)
    drifts = {
        against: {
            measured.id: ReferenceDrift(
                reference_step=step, reference_path="/x", method="sketch", relative_l2=0.25, cosine=0.5
            )
        }
        for against, step in (("first", 100), ("previous", 1100), ("best", 300), ("200", 200))
    }
    with site(memory=MemorySources(runs=[view("gpt", recent=(measured,))], drifts=drifts)) as own:
        for question, step in (
            ("against=first", 100),
            ("against=best&tensor=*.weight", 300),
            ("against=200", 200),
            ("tensor=*.weight", 1100),
        ):
            (told,) = own.ask(f"/api/v1/runs/gpt/history?{question}").json["snapshots"]
            assert (told["drift"]["reference_step"], told["drift"]["relative_l2"]) == (step, 0.25), question
        refused = own.ask("/api/v1/runs/gpt/history?against=everything")
        assert (refused.status, refused.json) == (400, {"error": "'everything' is no reference"})


@pytest.mark.parametrize(
    "query",
    [
        "runs/other/history?against=" + "9" * 501,
        "runs/other/history?limit=0",
        "runs/other/history?limit=501",
        "runs/other/history?limit=-1",
        "runs/other/history?limit=1e2",
        "runs/other/history?limit=%D9%A3",
        "runs/other/history?limit=" + "9" * 5000,
        "alerts?state=burning",
        "alerts?since=nan",
        "alerts?since=yesterday",
        "alerts?limit=",
    ],
)
def test_a_wrong_question_is_answered_with_what_would_be_right(shared: Site, query: str) -> None:
    answer = shared.ask(f"/api/v1/{query}")
    assert answer.status == 400
    assert answer.json["error"].split(":")[0] in {"limit", "state", "since", "against, tensor"}


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/runs/nobody",
        "/runs/",
        "/runs/..%2f..%2fetc%2fpasswd",
        "/runs/%252e%252e%252fetc",
        "/static/",
        "/static/..%2fapp.py",
        "/static/%2e%2e/templates/layout.html",
        "/api/v1/runs/nobody/history",
        "/metrics/",
        "//evil.example/",
        "/%00",
        "/..\\..\\etc\\passwd",
    ],
)
def test_what_is_not_there_is_not_found_and_opens_nothing(shared: Site, path: str) -> None:
    answer = shared.ask(path)
    assert answer.status == 404
    assert b"root:" not in answer.body


@pytest.mark.parametrize("path", ["/", "/metrics", "/livez", "/api/v1/runs", "/nowhere", "/runs/nobody"])
def test_every_answer_has_the_security_headers_and_checks_the_host(shared: Site, path: str) -> None:
    answer = shared.ask(path)
    assert {name: answer.headers.get(name.lower()) for name in SECURITY_HEADERS} == SECURITY_HEADERS
    refused = shared.ask(path, Host="evil.example")
    assert refused.status == 403
    assert {name: refused.headers.get(name.lower()) for name in SECURITY_HEADERS} == SECURITY_HEADERS
    assert b"gpt" not in refused.body
    assert shared.ask(path, Host="LOCALHOST.:1").status == answer.status


@pytest.mark.parametrize("path", ["/", "/metrics", "/api/v1/alerts", "/livez"])
def test_head_answers_like_get_without_a_body_and_writing_is_refused(shared: Site, path: str) -> None:
    head = shared.ask(path, "HEAD")
    assert head.status == 200
    assert head.body == b""
    for method in ("POST", "DELETE", "OPTIONS", "PUT"):
        answer = shared.ask(path, method)
        assert answer.status == 405
        assert answer.headers["allow"] == "GET, HEAD"


def test_metrics_come_as_text_as_openmetrics_and_compressed(shared: Site) -> None:
    text = shared.ask("/metrics")
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b'ckptwatch_run_healthy{run="gpt/a b"} 1.0\n' in text.body
    assert b'ckptwatch_build_info{version="1.2.3"} 1.0\n' in text.body
    modern = shared.ask("/metrics", Accept="application/openmetrics-text;version=1.0.0")
    assert modern.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = list(parse_openmetrics(modern.body.decode()))  # type: ignore[no-untyped-call]
    assert "ckptwatch_checkpoint_step" in {family.name for family in families}
    packed = shared.ask("/metrics", Accept_Encoding="gzip")
    assert packed.headers["content-encoding"] == "gzip"
    assert b"ckptwatch_run_healthy" in gzip.decompress(packed.body)


def test_metrics_can_be_asked_for_by_name(shared: Site) -> None:
    body = shared.ask("/metrics?name[]=ckptwatch_run_healthy").body.decode()
    assert {line.split("{")[0] for line in body.splitlines() if not line.startswith("#")} == {"ckptwatch_run_healthy"}


def test_the_probes_say_whether_we_live_and_whether_we_can_work() -> None:
    with site() as own:
        assert own.ask("/livez").body == b"ok\n"
        assert own.ask("/readyz").status == 200
        own.readiness[0] = "the database is\u202e locked"
        answer = own.ask("/readyz")
        assert answer.status == 503
        assert answer.body == b"not ready: the database is\\u202e locked\n"
        assert own.ask("/livez").status == 200


def test_a_protected_site_shows_nothing_without_login() -> None:
    with site(WebSettings(token="s3cret")) as own:
        for path in ("/", "/metrics", "/api/v1/runs", "/nowhere"):
            refused = own.ask(path)
            assert refused.status == 401
            assert b"gpt" not in refused.body
            assert own.ask(path, Authorization="Bearer s3cret").status == (404 if path == "/nowhere" else 200)
        own.readiness[0] = "private detail"
        assert own.ask("/readyz").body == b"not ready\n"


def test_a_database_that_does_not_answer_gives_503_with_the_reason_but_metrics_go_on() -> None:
    with site() as own:
        own.memory.error = "database is locked by another program"
        page = own.ask("/")
        assert page.status == 503
        assert b"database is locked by another program" in page.body
        document = own.ask("/api/v1/runs")
        assert document.status == 503
        assert document.json == {"error": "database is locked by another program"}
        metrics = own.ask("/metrics")
        assert metrics.status == 200
        assert b"ckptwatch_database_up 0.0\n" in metrics.body
        own.memory.error = None
        assert own.ask("/").status == 200


def test_an_unexpected_error_is_logged_and_shows_no_details(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> list[Any]:
        raise RuntimeError("secret detail")

    memory = MemorySources()
    memory.views = broken  # type: ignore[method-assign]
    with caplog.at_level(logging.ERROR), site(memory=memory) as own:
        answer = own.ask("/")
    assert answer.status == 500
    assert b"secret detail" not in answer.body
    assert answer.headers["content-security-policy"] == SECURITY_HEADERS["Content-Security-Policy"]
    assert "secret detail" in caplog.text


def test_documents_survive_names_that_are_no_text() -> None:
    strange = view("\udcff", run=summary("\udcff"), newest=snapshot(1, "\udcff"))
    alerts = [alert(run="\udcff", state=AlertState.PENDING)]
    with site(memory=MemorySources(runs=[strange], open_alerts=alerts)) as own:
        assert own.ask("/api/v1/runs").json[0]["run"] == "\udcff"
        assert own.ask("/api/v1/alerts").json[0]["state"] == "pending"
        assert own.ask("/").status == 200
        assert b"\\udcff" in own.ask("/metrics").body


def raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        chunks = []
        while chunk := connection.recv(65536):
            chunks.append(chunk)
    return b"".join(chunks)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n", b"400"),
        (b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", b"403"),
        (b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b"404"),
        (b"GET / HTTP/1.1\r\nHost: [::1]:10470\r\nConnection: close\r\n\r\n", b"200"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 9_000 + b"\r\nConnection: close\r\n\r\n", b"431"),
        (b"\x16\x03\x01\x02\x00 this is TLS\r\n\r\n", b"400"),
    ],
)
def test_odd_requests_get_a_plain_refusal(shared: Site, request_bytes: bytes, status: bytes) -> None:
    answer = raw(shared.server.port, request_bytes)
    assert answer.startswith(b"HTTP/1.1 " + status)


def course_memory() -> MemorySources:
    """Return a run whose tensor with a strange name went bad at step 1100."""
    name = "h.0/a&b=c #?<i>\N{GREEK SMALL LETTER ALPHA}"
    recent = view("gpt/a b").recent
    moments = [
        TensorMoment(
            snapshot=stored,
            tensor=tensor(name, n_nan=0 if stored.id < 11 else 5, quantiles={"0.5": 0.1, "0.25": 0.0, "0.75": 0.3}),
            drift=drift(name),
            bins=((-1.0, 0.0, 20), (0.0, 1.0, 44)),
        )
        for stored in recent
    ]
    points = tuple(
        TensorPoint(
            snapshot_id=moment.snapshot.id,
            name=other,
            n_elements=64,
            n_nonfinite=moment.tensor.n_nonfinite if other == name else 0,
            norm_l2=4.0,
            relative_l2=0.01,
        )
        for moment in moments
        for other in (name, "h.0.weight", "h.1.weight")
    )
    return MemorySources(
        runs=[view("gpt/a b")],
        open_alerts=[alert(run="gpt/a b", step=1100)],
        courses=Course(points=points, losses={stored.id: 3.0 / stored.id for stored in recent}),
        moments={name: moments, "h.0.weight": moments, "h.1.weight": moments},
    )


def test_the_fault_is_two_links_from_the_start() -> None:
    with site(memory=course_memory()) as own:
        start = own.ask("/").body.decode()
        assert run_url("gpt/a b") in start
        run_page = own.ask(run_url("gpt/a b")).body.decode()
        link = re.search(r'first not finite at step 1100: <a href="([^"]+)"', run_page)
        assert link is not None
        answer = own.ask(html.unescape(link[1]))
        assert answer.status == 200
        text = html.unescape(answer.body.decode())
        assert "h.0/a&b=c #?<i>\N{GREEK SMALL LETTER ALPHA}" in text
        assert "5 not finite" in text
        assert "<i>" not in answer.body.decode()


def test_the_run_page_draws_its_course_and_names_the_command_to_resume() -> None:
    with site(memory=course_memory()) as own:
        text = html.unescape(own.ask(run_url("gpt/a b")).body.decode())
    assert """python train.py --resume "$(ckptwatch last-good 'gpt/a b')\"""" in text
    for label in ("weight norm", "update ratio", "gradient norm", "logged loss"):
        assert f"<span>{label}</span>" in text
    assert text.count('class="mark critical"') == 4
    assert text.count('class="first"') == 2  # one outlined cell a map
    assert "step 1100: nonfinite" in text


def test_every_address_of_a_tensor_page_answers_and_nothing_is_styled_inline() -> None:
    with site(memory=course_memory()) as own:
        page = own.ask(tensor_url("gpt/a b", "h.0.weight")).body.decode()
        addresses = {html.unescape(address) for address in re.findall(r'href="([^"]+)"', page)}
        assert any(address.startswith("/tensor?") for address in addresses)
        assert {address: own.ask(address).status for address in addresses} == dict.fromkeys(addresses, 200)
    assert "style=" not in page
    assert re.findall(r"<script(?! src=\"/static/[a-z0-9.]+\" defer></script>)", page) == []


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("run=gpt%2Fa%20b&name=unknown", 404),
        ("run=unknown&name=h.0.weight", 404),
        ("run=gpt%2Fa%20b", 400),
        ("", 400),
        ("run=gpt%2Fa%20b&name=a&name=b", 400),
        ("run=%FF&name=%FF", 400),
        ("&".join(f"a{i}=1" for i in range(20)), 400),
    ],
)
def test_a_wrong_tensor_address_is_refused_with_a_page(query: str, status: int) -> None:
    with site(memory=course_memory()) as own:
        answer = own.ask(f"/tensor?{query}")
    assert answer.status == status
    assert answer.headers["content-type"] == "text/html; charset=utf-8"


@given(st.text(st.characters()), st.text(st.characters()))
def test_names_come_back_from_an_address_as_they_went_in(run: str, name: str) -> None:
    query = tensor_url(run, name).partition("?")[2].encode()
    assert names_of(query) == ((run, name) if run and name else None)
