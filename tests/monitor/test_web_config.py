"""What may stand in a web configuration file, and everything that is wrong with one, at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from monitor import config as config_module
from monitor.config import ConfigError
from monitor.web_config import WebConfigError, WebConfigFile, check_web_config
from tests.support.certificates import HASH, Certificates

TLS = {"cert_file": "server.pem", "key_file": "server.key"}


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def problems(path: Path) -> list[str]:
    with pytest.raises(WebConfigError):
        WebConfigFile(str(path))
    return list(check_web_config(str(path))[1])


@pytest.mark.parametrize(
    "text", ["", "{}", "tls_server_config:\nbasic_auth_users:\n", "http_server_config: {http2: false}"]
)
def test_an_empty_file_asks_for_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "web.yml").write_text(text)
    file = WebConfigFile(str(tmp_path / "web.yml"))
    assert not file.has_tls
    assert not file.current().config.is_protected


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"tls_server_config": {"cert_file": "server.pem"}}, "tls_server_config.key_file: field required"),
        ({"tls_server_config": {**TLS, "cert_file": "none.pem"}}, "none.pem and"),
        ({"tls_server_config": {**TLS, "key_file": "client.key"}}, "key values mismatch"),
        ({"tls_server_config": {**TLS, "cert_file": "server.key"}}, "no certificate with its key"),
        ({"tls_server_config": {**TLS, "min_version": "TLS10"}}, "must be TLS12 or TLS13"),
        ({"tls_server_config": {**TLS, "min_version": "TLS13", "max_version": "TLS12"}}, "must not be above"),
        ({"tls_server_config": {**TLS, "client_auth_type": "RequireAnyClientCert"}}, "nobody verifies"),
        ({"tls_server_config": {**TLS, "client_auth_type": "VerifyClientCertIfGiven"}}, "belong together"),
        ({"tls_server_config": {**TLS, "client_ca_file": "ca.pem"}}, "belong together"),
        (
            {"tls_server_config": {**TLS, "client_auth_type": "VerifyClientCertIfGiven", "client_ca_file": "x"}},
            "client_ca_file",
        ),
        ({"tls_server_config": {**TLS, "cipher_suites": ["TLS_RSA"]}}, "cipher_suites: is not supported here"),
        ({"rate_limit": {}}, "rate_limit: is not supported here"),
        ({"basic_auth_users": {"ann": "hunter2"}}, "'ann' is no bcrypt hash"),
        ({"basic_auth_users": {"ann": HASH.replace("$04$", "$31$")}}, "from 4 to 16"),
        ({"basic_auth_users": {"a:b": HASH}}, "colon"),
        ({"http_server_config": {"headers": {"Set-Cookie": "x"}}}, "'Set-Cookie' cannot be set"),
        ({"http_server_config": {"headers": {"X-Frame-Options": "x\r\ny: z"}}}, "printable ASCII"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_its_reason(
    certificates: Certificates, document: dict[str, Any], words: str
) -> None:
    certificates.web_file.write_text(yaml.safe_dump(document))
    (line,) = problems(certificates.web_file)
    assert words in line
    assert "hunter2" not in line


def test_all_that_is_wrong_is_said_at_once(certificates: Certificates) -> None:
    document = {
        "tls_server_config": {"cert_file": "x", "min_version": "SSL3"},
        "basic_auth_users": {"ann": "x"},
        "y": 1,
    }
    certificates.web_file.write_text(yaml.safe_dump(document))
    assert len(problems(certificates.web_file)) == 4


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"- 1", "must hold sections"), (b"a: [", "not valid YAML"), (b"\xff\xfe\x00", "not valid YAML")],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "web.yml").write_bytes(content)
    assert words in problems(tmp_path / "web.yml")[0]


def test_a_file_without_an_end_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "web.yml").write_bytes(b"# " + b"x" * 1_000_001)
    assert "larger than" in problems(tmp_path / "web.yml")[0]
    assert "cannot read" in problems(tmp_path / "none.yml")[0]


def test_the_configuration_names_the_key_and_repeats_no_password(certificates: Certificates) -> None:
    certificates.web_file.write_text(yaml.safe_dump({"basic_auth_users": {"ann": "hunter2"}}))
    with pytest.raises(ConfigError) as caught:
        config_module.load(None, {"serve": {"web_config": str(certificates.web_file), "listen": "0.0.0.0:0"}})
    (problem,) = caught.value.problems
    assert problem.path == "serve.web_config"
    assert "hunter2" not in problem.message


def test_other_machines_may_come_where_users_or_certificates_are_asked_for(certificates: Certificates) -> None:
    serve = {"web_config": str(certificates.web_file), "listen": "0.0.0.0:0"}
    certificates.write()
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        config_module.load(None, {"serve": serve})
    certificates.write(basic_auth_users={"ann": HASH})
    assert config_module.load(None, {"serve": serve}).serve.web_config
    certificates.write({"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "ca.pem"})
    assert config_module.load(None, {"serve": serve}).serve.web_config
    certificates.write({"client_auth_type": "VerifyClientCertIfGiven", "client_ca_file": "ca.pem"})
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        config_module.load(None, {"serve": serve})
