"""A real Prometheus scrapes a daemon that asks for TLS, a certificate and a password."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from monitor.config import load
from monitor.daemon import Daemon
from tests.support.certificates import HASH, PASSWORD, Certificates
from tests.support.daemons import wait_for
from tests.support.prometheus import Prometheus, needs_stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), needs_stack]


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    made = Certificates(tmp_path / "tls")
    made.write(
        {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "ca.pem"}, basic_auth_users={"prom": HASH}
    )
    return made


@pytest.fixture
def daemon(tmp_path: Path, certificates: Certificates) -> Iterator[Daemon]:
    root = tmp_path / "gpt"
    root.mkdir()
    np.savez(root / "step-7.npz", weight=np.ones((4, 4), np.float32))
    sections: dict[str, dict[str, Any]] = {
        "watch": {"roots": [str(root)], "settle_seconds": 0.1},
        "storage": {"url": str(tmp_path / "x.db")},
        "serve": {"listen": "127.0.0.1:0", "web_config": str(certificates.web_file)},
    }
    daemon = Daemon(load(None, sections))
    daemon.start()
    loop = threading.Thread(target=daemon.run)
    loop.start()
    yield daemon
    daemon.stop()
    loop.join()
    daemon.close()


def test_prometheus_scrapes_by_tls_with_a_certificate_and_a_password(
    tmp_path: Path, daemon: Daemon, certificates: Certificates
) -> None:
    assert daemon.url is not None
    target = daemon.url.removeprefix("https://")
    prometheus = Prometheus(tmp_path / "prometheus", target)
    file = prometheus.directory / "prometheus.yml"
    document = yaml.safe_load(file.read_text())
    directory = certificates.directory
    plain = {"scheme": "https", "static_configs": [{"targets": [target]}]}
    tls = {
        "ca_file": str(directory / "ca.pem"),
        "cert_file": str(directory / "client.pem"),
        "key_file": str(directory / "client.key"),
    }
    login = {"basic_auth": {"username": "prom", "password": PASSWORD}}
    document["scrape_configs"] = [
        {"job_name": "right", **plain, **login, "tls_config": tls},
        {"job_name": "no-password", **plain, "tls_config": tls},
        {"job_name": "no-certificate", **plain, **login, "tls_config": {"ca_file": tls["ca_file"]}},
        {"job_name": "stranger", **plain, **login},
    ]
    file.write_text(yaml.safe_dump(document))
    with prometheus:
        wait_for("the step", lambda: prometheus.value('ckptwatch_checkpoint_step{job="right",run="gpt"}') == 7)
        wait_for("all to be tried", lambda: prometheus.value("count(up)") == 4)
        assert prometheus.value('up{job="right"}') == 1
        assert prometheus.value('sum(up{job!="right"})') == 0
