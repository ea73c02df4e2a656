"""TLS and users by the web configuration file of Prometheus' exporters, with real certificates on loopback."""

from __future__ import annotations

import base64
import http.client
import logging
import os
import shutil
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from monitor.show.web import server as server_module
from monitor.show.web.app import create_app
from monitor.show.web.guard import WebSettings
from monitor.show.web.server import ServerHandle, serve_in_thread
from monitor.web_config import WebConfigFile
from tests.support.certificates import HASH, PASSWORD, Certificates
from tests.support.show_records import NOW, MemorySources

ANN = f"Basic {base64.b64encode(f'ann:{PASSWORD}'.encode()).decode()}"
MUTUAL = {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "ca.pem"}


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "tls")


@contextmanager
def served(certificates: Certificates, **facts: str) -> Iterator[ServerHandle]:
    settings = WebSettings(web_config=WebConfigFile(str(certificates.web_file)), **facts)  # type: ignore[arg-type]
    app = create_app(settings, MemorySources().sources, CollectorRegistry(), lambda: None, lambda: NOW)
    running = serve_in_thread(app, "127.0.0.1", 0, tls=settings.tls)
    try:
        yield running
    finally:
        running.stop()


def ask(
    running: ServerHandle, context: ssl.SSLContext, authorization: str | None = None, path: str = "/api/v1/runs"
) -> http.client.HTTPResponse:
    connection = http.client.HTTPSConnection("127.0.0.1", running.port, context=context, timeout=20)
    try:
        connection.request("GET", path, headers={} if authorization is None else {"Authorization": authorization})
        answer = connection.getresponse()
        answer.read()
        return answer
    finally:
        connection.close()


def serial(running: ServerHandle, context: ssl.SSLContext) -> str:
    with (
        socket.create_connection(("127.0.0.1", running.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        found = secured.getpeercert()
        assert found is not None
        return str(found["serialNumber"])


def test_the_page_is_served_by_tls_and_says_so(certificates: Certificates) -> None:
    certificates.write(http_server_config={"headers": {"Strict-Transport-Security": "max-age=60"}})
    with served(certificates) as running:
        assert running.url == f"https://127.0.0.1:{running.port}"
        answer = ask(running, certificates.client())
        assert answer.status == 200
        assert answer.headers["Strict-Transport-Security"] == "max-age=60"
        assert answer.headers["X-Frame-Options"] == "DENY"
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(running, ssl.create_default_context())
        with pytest.raises((OSError, http.client.HTTPException)):
            urllib.request.urlopen(f"http://127.0.0.1:{running.port}/", timeout=20)


def test_users_are_asked_for_their_password_everywhere_but_at_the_probes(certificates: Certificates) -> None:
    certificates.write(basic_auth_users={"ann": HASH})
    client = certificates.client()
    wrong = [f"ann:{PASSWORD}x", "ann:", f"bob:{PASSWORD}", ":", "ann", f"ann:{'x' * 100}"]
    with served(certificates) as running:
        refused = ask(running, client)
        assert refused.status == 401
        assert refused.headers["WWW-Authenticate"].startswith("Basic ")
        for login in wrong:
            header = f"Basic {base64.b64encode(login.encode()).decode()}"
            assert ask(running, client, header).status == 401
        for _ in range(3):  # the first is worked out, the others are remembered
            assert ask(running, client, ANN).status == 200
        assert ask(running, client, "Basic !!!").status == 401
        assert ask(running, client, "Bearer x").status == 401
        assert ask(running, client, path="/livez").status == 200
        assert ask(running, client, path="/metrics").status == 401


def test_a_token_and_the_users_of_the_file_are_two_ways_in(certificates: Certificates) -> None:
    certificates.write(basic_auth_users={"ann": HASH})
    with served(certificates, token="t0ken") as running:
        client = certificates.client()
        assert ask(running, client, "Bearer t0ken").status == 200
        assert ask(running, client, ANN).status == 200
        assert ask(running, client, "Bearer other").status == 401
        assert ask(running, client).status == 401


def test_a_client_without_the_wanted_certificate_is_not_let_in(certificates: Certificates, tmp_path: Path) -> None:
    certificates.write(MUTUAL)
    stranger = Certificates(tmp_path / "other").client(with_certificate=True)
    stranger.load_verify_locations(certificates.directory / "ca.pem")
    with served(certificates) as running:
        assert ask(running, certificates.client(with_certificate=True)).status == 200
        for context in (certificates.client(), stranger):
            with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
                ask(running, context)


def test_a_version_below_the_wanted_one_is_refused(certificates: Certificates) -> None:
    certificates.write({"min_version": "TLS13"})
    with served(certificates) as running:
        assert ask(running, certificates.client()).status == 200
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask(running, certificates.client(maximum_version=ssl.TLSVersion.TLSv1_2))


def test_new_certificates_users_and_demands_are_taken_without_a_restart(certificates: Certificates) -> None:
    certificates.write()
    client = certificates.client()
    with served(certificates) as running:
        before = serial(running, client)
        assert serial(running, client) == before
        certificates.issue("server", "127.0.0.1")
        assert serial(running, client) != before
        certificates.write(basic_auth_users={"ann": HASH})
        assert ask(running, client).status == 401
        assert ask(running, client, ANN).status == 200
        certificates.write(MUTUAL, basic_auth_users={"ann": HASH})
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
            ask(running, client, ANN)
        assert ask(running, certificates.client(with_certificate=True), ANN).status == 200
        certificates.write(basic_auth_users={"bob": HASH})
        assert ask(running, client, ANN).status == 401  # what was remembered of her is worth nothing now


def test_a_change_that_cannot_be_used_is_said_once_and_the_old_state_stays(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    certificates.write(basic_auth_users={"ann": HASH})
    client = certificates.client()
    with served(certificates) as running, caplog.at_level(logging.ERROR, "monitor.web_config"):
        certificates.web_file.write_text("basic_auth_users: {ann: plaintext}\n")
        assert [ask(running, client, header).status for header in (None, ANN, ANN)] == [401, 200, 200]
        (record,) = caplog.records
        assert "cannot be used" in record.message
        assert "plaintext" not in record.message
        (certificates.directory / "server.key").unlink()
        certificates.write(basic_auth_users={"ann": HASH})
        assert ask(running, client, ANN).status == 200
        assert "server.key" in caplog.records[-1].message
        certificates.web_file.write_text("{}\n")  # and no edit can open the door or switch TLS off
        os.utime(certificates.web_file, (1, 1))
        assert ask(running, client).status == 401
        assert "restart" in caplog.records[-1].message


def test_a_client_that_never_shakes_hands_is_cut_off(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "REQUEST_SECONDS_MAX", 0.3)
    certificates.write()
    with served(certificates) as running, socket.create_connection(("127.0.0.1", running.port)) as silent:
        silent.settimeout(20)
        assert silent.recv(1) == b""
        assert ask(running, certificates.client()).status == 200


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian package prometheus)")
def test_the_tool_of_prometheus_takes_the_same_file(certificates: Certificates) -> None:
    file = certificates.write(MUTUAL, basic_auth_users={"ann": HASH})
    checked = subprocess.run(
        ["promtool", "check", "web-config", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stderr
