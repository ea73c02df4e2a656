"""The configuration: four sources, every error at once with its key's path, and no secret in any message."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from alerts.rule import RuleSetting
from monitor.assembly import engine_settings, pool_options, watch_parts, web_settings
from monitor.config import (
    CONFIG_BYTES_MAX,
    Config,
    ConfigError,
    ServeConfig,
    default_database_url,
    load,
    notifier_config,
    resolve_secret,
)
from storage.database import open_database
from storage.records import Severity


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("CKPTWATCH_"):
            monkeypatch.delenv(name)


def write(tmp_path: Path, document: object) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


def problems(path: Path | None, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return {problem.path: problem.message for problem in caught.value.problems}


def options_of(setting: RuleSetting) -> dict[str, Any]:
    return dataclasses.asdict(cast(Any, setting.options))


def test_without_any_file_everything_has_a_default() -> None:
    config = load(None)
    assert config == Config()
    assert config.watch.roots == ()
    assert config.serve.listen == "127.0.0.1:10470"


def test_an_empty_file_and_empty_sections_mean_the_defaults(tmp_path: Path) -> None:
    assert load(write(tmp_path, "")) == Config()
    assert load(write(tmp_path, "watch:\nserve:\nrules:\n")) == Config()


def test_command_line_beats_environment_beats_file_beats_default_key_by_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(
        tmp_path,
        {
            "watch": {"settle_seconds": 3, "scan_interval_seconds": 30, "run_idle_seconds": 600},
            "storage": {"url": "sqlite:///file.db"},
        },
    )
    monkeypatch.setenv("CKPTWATCH_WATCH__SETTLE_SECONDS", "4")
    monkeypatch.setenv("CKPTWATCH_WATCH__SCAN_INTERVAL_SECONDS", "40")
    monkeypatch.setenv("CKPTWATCH_STORAGE__URL", "sqlite:///environment.db")
    config = load(file, {"watch": {"settle_seconds": 5}})
    assert config.watch.settle_seconds == 5
    assert config.watch.scan_interval_seconds == 40
    assert config.watch.run_idle_seconds == 600
    assert config.watch.incomplete_timeout_seconds == 900
    assert config.storage.url == "sqlite:///environment.db"


def test_lists_come_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTWATCH_WATCH__ROOTS", '["/data/a", {"path": "/data/b", "name": "b"}]')
    assert [(root.path, root.name) for root in load(None).watch.roots] == [("/data/a", None), ("/data/b", "b")]


def test_null_from_the_environment_takes_a_value_of_the_file_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKPTWATCH_MEASURE__BYTES_PER_SECOND", "null")
    assert load(write(tmp_path, {"measure": {"bytes_per_second": 5_000_000}})).measure.bytes_per_second is None


def test_a_variable_of_an_unknown_section_or_key_and_a_broken_list_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTWATCH_WATH__ROOTS", "/data")
    monkeypatch.setenv("CKPTWATCH_WATCH__SETLE_SECONDS", "1")
    monkeypatch.setenv("CKPTWATCH_NOTIFY__NOTIFIERS", '[{"kind": ')
    monkeypatch.setenv("CKPTWATCH_COMPILE_CACHE", "/not/a/key")
    found = problems(None)
    assert set(found) == {"CKPTWATCH_WATH__ROOTS", "watch.setle_seconds", "notify.notifiers"}


def test_nested_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTWATCH_RULES__GRADIENT_EXPLOSION__FACTOR", "20")
    monkeypatch.setenv("CKPTWATCH_RULES__STALLED_RUN__ENABLED", "false")
    settings = {setting.name: setting for setting in engine_settings(load(None)).rules}
    assert options_of(settings["gradient_explosion"])["factor"] == 20
    assert settings["stalled_run"].enabled is False


@pytest.mark.parametrize("roots", ["/data/x", ["/data/x"], [{"path": "/data/x"}]])
def test_roots_may_be_one_path_or_a_list_of_paths_or_mappings(tmp_path: Path, roots: object) -> None:
    assert [root.path for root in load(write(tmp_path, {"watch": {"roots": roots}})).watch.roots] == ["/data/x"]


def test_every_error_of_a_file_is_reported_at_once_with_its_key(tmp_path: Path) -> None:
    document = {
        "watch": {"settle_seconds": -1, "polling": "sometimes", "roots": [{"name": "x"}], "typo": 1},
        "measure": {"workers": "many"},
        "rules": {
            "nonfinte": {},
            "gradient_explosion": {"facter": 3, "severity": "loud", "for_snapshots": -1},
            "overrides": [{"runs": "a*", "rules": {"nonfinite": {"ignroe": []}}}, {"rules": {}}],
        },
        "notify": {
            "notifiers": [
                {"kind": "slak"},
                {"kind": "email", "host": "h"},
                {"kind": "log", "minimum_severity": "dreadful"},
            ]
        },
        "serve": {"listen": "10470", "auth": {"user": "x"}},
        "extra": {},
    }
    found = problems(write(tmp_path, document))
    assert set(found) == {
        "watch.settle_seconds",
        "watch.polling",
        "watch.roots.0.path",
        "watch.typo",
        "measure.workers",
        "rules.nonfinte",
        "rules.gradient_explosion.facter",
        "rules.gradient_explosion.severity",
        "rules.gradient_explosion.for_snapshots",
        "rules.overrides.0.rules.nonfinite.ignroe",
        "rules.overrides.1",
        "notify.notifiers.0.kind",
        "notify.notifiers.1.from",
        "notify.notifiers.1.to",
        "notify.notifiers.2.minimum_severity",
        "serve.listen",
        "serve.auth.user",
        "extra",
    }
    assert "did you mean nonfinite?" in found["rules.nonfinte"]
    assert "did you mean factor?" in found["rules.gradient_explosion.facter"]
    assert "did you mean slack?" in found["notify.notifiers.0.kind"]
    assert found["watch.typo"] == found["extra"] == "unknown key"
    assert "HOST:PORT" in found["serve.listen"]
    assert all(message and "\n" not in message for message in found.values())


@pytest.mark.parametrize(
    ("section", "value"),
    [("watch", "a text"), ("measure", [1]), ("rules", 3), ("notify", "slack"), ("serve", ["x"]), ("storage", "x.db")],
)
def test_a_section_of_the_wrong_shape_is_named(tmp_path: Path, section: str, value: object) -> None:
    assert section in problems(write(tmp_path, {section: value}))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("watch: [", "is not valid YAML"),
        ("- a\n- b\n", "must hold sections"),
        ("just text", "must hold sections"),
        ("a: !!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_configuration_says_why(tmp_path: Path, text: str, reason: str) -> None:
    found = problems(write(tmp_path, text))
    assert reason in found[""]
    assert "\n" not in found[""]


def test_a_missing_unreadable_or_huge_file_says_so(tmp_path: Path) -> None:
    assert "cannot read" in problems(tmp_path / "nowhere.yaml")[""]
    assert "cannot read" in problems(tmp_path)[""]
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"#" * (CONFIG_BYTES_MAX + 1))
    assert "larger than" in problems(huge)[""]
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "is not valid YAML" in problems(binary)[""]


def test_two_notifiers_with_one_name_are_refused_and_two_names_are_fine(tmp_path: Path) -> None:
    twice = {"notify": {"notifiers": [{"kind": "log"}, {"kind": "log"}]}}
    assert "used twice" in problems(write(tmp_path, twice))["notify.notifiers.1.name"]
    named = {"notify": {"notifiers": [{"kind": "log"}, {"kind": "log", "name": "second"}]}}
    assert [entry.label for entry in load(write(tmp_path, named)).notify.notifiers] == ["log", "second"]


def test_a_secret_is_a_reference_to_the_environment_or_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", " https://hooks.slack.com/services/T/B/x \n")
    assert resolve_secret("env:HOOK").get_secret_value() == "https://hooks.slack.com/services/T/B/x"
    (tmp_path / "secret").write_text("s3cret\n")
    assert resolve_secret(f"file:{tmp_path / 'secret'}").get_secret_value() == "s3cret"


@pytest.mark.parametrize("reference", ["env:NOT_SET_ANYWHERE", "file:/does/not/exist", "hunter2", "vault:x", ""])
def test_a_reference_that_leads_nowhere_says_what_to_do_and_never_the_value(reference: str) -> None:
    with pytest.raises(ValueError, match=r"not set|cannot be read|written as a reference") as caught:
        resolve_secret(reference)
    assert "hunter2" not in str(caught.value)


@given(secret=st.text(st.characters(categories=["L", "N"]), min_size=8, max_size=40).map(lambda s: f"Zq{s}Zq"))
def test_a_secret_written_in_plain_is_refused_without_being_repeated(secret: str) -> None:
    notifiers = [{"kind": "slack", "url": f"https://hooks.slack.com/services/{secret}"}]
    mail = {"kind": "email", "host": "h", "from": "a@b.c", "to": ["a@b.c"], "username": "u", "password": secret}
    with pytest.raises(ConfigError) as caught:
        load(None, {"notify": {"notifiers": [*notifiers, mail]}, "serve": {"auth": {"token": "env:NO_SUCH_TOKEN"}}})
    paths = {problem.path for problem in caught.value.problems}
    assert {"notify.notifiers.0.url", "notify.notifiers.1.password"} <= paths
    assert secret not in str(caught.value)


def test_a_resolved_secret_is_not_printed_by_its_notifier_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", "https://hooks.slack.com/services/T/B/VERYSECRET")
    config = load(None, {"notify": {"notifiers": [{"kind": "slack", "url": "env:HOOK"}]}})
    own = notifier_config(config.notify.notifiers[0], "notify.notifiers.0")
    assert "VERYSECRET" not in repr(own) + str(own) + own.model_dump_json() + repr(config)


def test_a_resolved_secret_that_is_wrong_is_refused_without_being_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", "ftp://VERYSECRET.example")
    with pytest.raises(ConfigError) as caught:
        load(None, {"notify": {"notifiers": [{"kind": "slack", "url": "env:HOOK"}]}})
    assert "VERYSECRET" not in str(caught.value)


def test_another_address_than_loopback_needs_a_token_or_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "other machines" in problems(None, {"serve": {"listen": "0.0.0.0:80"}})["serve.listen"]
    assert "belong together" in problems(None, {"serve": {"auth": {"username": "u"}}})["serve.auth"]
    assert "not set" in problems(None, {"serve": {"auth": {"token": "env:NO_SUCH_TOKEN"}}})["serve.auth.token"]
    monkeypatch.setenv("TOKEN", "t")
    open_to_all = load(None, {"serve": {"listen": "0.0.0.0:80", "auth": {"token": "env:TOKEN"}}})
    assert web_settings(open_to_all).token == "t"
    assert load(None, {"serve": {"listen": "0.0.0.0:80", "enabled": False}}).serve.enabled is False


@pytest.mark.parametrize(
    ("listen", "host", "port", "loopback"),
    [
        ("127.0.0.1:10470", "127.0.0.1", 10470, True),
        ("127.9.9.9:1", "127.9.9.9", 1, True),
        ("localhost:0", "localhost", 0, True),
        ("[::1]:8080", "::1", 8080, True),
        ("[::]:8080", "::", 8080, False),
        ("10.0.0.1:65535", "10.0.0.1", 65535, False),
    ],
)
def test_an_address_is_taken_apart(listen: str, host: str, port: int, loopback: bool) -> None:
    serve = ServeConfig(listen=listen)
    assert (serve.host, serve.port, serve.is_loopback) == (host, port, loopback)


@pytest.mark.parametrize("listen", ["", ":80", "localhost", "localhost:", "localhost:x", "127.0.0.1:65536", "h:-1"])
def test_an_address_that_is_none_is_refused(listen: str) -> None:
    assert "serve.listen" in problems(None, {"serve": {"listen": listen}})


def test_the_database_lies_in_the_state_directory_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_database_url() == "sqlite:////state/ckptwatch/ckptwatch.db"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_database_url() == "sqlite:////home/me/.local/state/ckptwatch/ckptwatch.db"


def test_an_override_changes_single_keys_of_a_rule_for_some_runs() -> None:
    changes = {"gradient_explosion": {"factor": 90}, "nonfinite": {"enabled": False}}
    rules = {
        "gradient_explosion": {"factor": 30, "baseline_checkpoints": 6},
        "overrides": [{"runs": "debug/*", "rules": changes}],
    }
    settings = engine_settings(load(None, {"rules": rules}))
    (override,) = settings.overrides
    changed = {setting.name: setting for setting in override.rules}
    assert override.runs == "debug/*"
    options = options_of(changed["gradient_explosion"])
    assert (options["factor"], options["baseline_checkpoints"]) == (90, 6)
    assert changed["nonfinite"].enabled is False


def test_routes_follow_the_notifiers_and_their_severity_and_scan_has_none() -> None:
    second = {"kind": "log", "name": "b", "minimum_severity": "critical"}
    config = load(None, {"notify": {"notifiers": [{"kind": "log", "minimum_severity": "info"}, second]}})
    routes = {route.notifier: route.severity_min for route in engine_settings(config).routes}
    assert routes == {"log": Severity.INFO, "b": Severity.CRITICAL}
    assert engine_settings(config, routes=False).routes == ()


def test_limits_of_the_workers_come_from_the_configuration() -> None:
    options = pool_options(load(None, {"measure": {"workers": 3, "timeout_seconds": 60, "memory_bytes_max": 2**30}}))
    assert (options.n_workers, options.task_timeout_seconds) == (3, 60)
    assert options.limits.memory_bytes_max == 2**30


def test_two_roots_with_one_name_are_refused_with_the_key(tmp_path: Path) -> None:
    roots = [{"path": str(tmp_path / "a"), "name": "x"}, {"path": str(tmp_path / "b"), "name": "x"}]
    config = load(None, {"watch": {"roots": roots}})
    database = open_database(f"sqlite:///{tmp_path / 'x.db'}")
    try:
        with pytest.raises(ConfigError, match=r"watch\.roots: two watched roots are both called 'x'"):
            watch_parts(config, database)
    finally:
        database.close()
