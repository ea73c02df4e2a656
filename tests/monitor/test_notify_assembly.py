"""How the section `notify` of the configuration reaches the engine and the messages."""

from __future__ import annotations

from typing import Any

import pytest

from monitor.assembly import engine_settings, page_link
from monitor.config import Config, ConfigError, load


def config(**sections: Any) -> Config:
    return load(None, sections)


def test_programs_are_told_at_once_and_people_after_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", "https://hooks.example.org/x")
    entries = [
        {"kind": "alertmanager", "url": "http://127.0.0.1:9093", "minimum_severity": "info"},
        {"kind": "webhook", "url": "env:HOOK"},
        {"kind": "slack", "url": "env:HOOK"},
        {"kind": "command", "enabled": True, "argv": ["/bin/true"]},
        {"kind": "log"},
    ]
    settings = engine_settings(config(notify={"notifiers": entries, "group_wait_seconds": 7}))
    waits = {route.notifier: route.wait_seconds for route in settings.routes}
    assert waits == {"alertmanager": 0.0, "webhook": 0.0, "slack": 7.0, "command": 0.0, "log": 7.0}


def test_maintenance_windows_reach_the_engine() -> None:
    keys = {"runs": "gpt*", "days": ["sun"], "from": "02:00", "to": "04:00", "timezone": "Europe/Berlin"}
    (window,) = engine_settings(config(notify={"maintenance": [keys]})).windows
    assert (window.runs, window.days) == ("gpt*", ("sun",))


def test_a_window_that_makes_no_sense_names_its_key() -> None:
    with pytest.raises(ConfigError) as caught:
        config(notify={"maintenance": [{"from": "02:00"}]}, serve={"external_url": "ckptwatch"})
    assert [problem.path for problem in caught.value.problems] == ["notify.maintenance.0", "serve.external_url"]


def test_the_link_of_a_run_is_escaped_and_left_out_where_there_is_no_page() -> None:
    serve = {"external_url": "https://ckptwatch.example.org/base/"}
    link = page_link(config(serve=serve), 'a b/ü|"<>#?\udcff')
    assert link == "https://ckptwatch.example.org/base/runs/a%20b/%C3%BC%7C%22%3C%3E%23%3F%FF"
    assert page_link(config(), "gpt") is None
    assert page_link(config(serve={**serve, "enabled": False}), "gpt") is None
