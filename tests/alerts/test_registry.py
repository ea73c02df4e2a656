"""What may be set, and everything that is wrong with it, at once."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from alerts import registry
from alerts.registry import NOTIFIERS, RULES, OptionsError, PluginError, UnknownNameError
from alerts.rule import Rule
from alerts.rules.gradient_explosion import GradientExplosion
from alerts.rules.nonfinite import Nonfinite
from storage.records import ProblemKind, Severity

DOCS = Path(__file__).parents[2] / "docs"


def errors_of(name: str, mapping: dict[str, object], path: str | None = None) -> tuple[str, ...]:
    with pytest.raises(OptionsError) as caught:
        registry.rule_setting(name, mapping, path=path)
    return caught.value.errors


def test_the_tables_are_sorted_and_everything_in_them_can_be_loaded_under_its_own_name() -> None:
    assert list(RULES) == sorted(RULES)
    assert list(NOTIFIERS) == sorted(NOTIFIERS)
    for name in RULES:
        assert registry.rule(name).name == name
    for kind in NOTIFIERS:
        assert registry.notifier_class(kind).kind == kind


@pytest.mark.parametrize("name", sorted(RULES))
def test_the_options_of_a_rule_are_a_frozen_dataclass_of_defaults(name: str) -> None:
    options = registry.rule(name).Options
    assert is_dataclass(options)
    assert registry.rule_options(name, {}) == options()


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_has_a_page_that_names_all_its_options_and_their_defaults(name: str) -> None:
    page = (DOCS / "rules" / f"{name}.md").read_text()
    for heading in ("## What it says", "## How it judges", "## Options", "## When it is over", "## Switch it off"):
        assert heading in page
    for option in fields(registry.rule(name).Options):
        assert f"`{option.name}`" in page
        if isinstance(option.default, float | int):
            assert f"| `{option.name}` | {option.default:g} |" in page.replace("true", "1").replace("false", "0")


@pytest.mark.parametrize("kind", sorted(NOTIFIERS))
def test_every_notifier_has_a_page_that_names_all_its_keys(kind: str) -> None:
    page = (DOCS / "notifiers" / f"{kind}.md").read_text()
    model = registry.notifier_class(kind).Config
    for key, info in getattr(model, "model_fields", {}).items():
        assert f"`{info.alias or key}`" in page


def test_options_are_taken_from_a_mapping() -> None:
    setting = registry.rule_setting(
        "gradient_explosion",
        {"factor": 20, "enabled": False, "severity": "warning", "for_snapshots": 2, "resolve_after_snapshots": 3},
    )
    assert isinstance(setting.options, GradientExplosion.Options)
    assert setting.options.factor == 20.0
    assert (setting.enabled, setting.severity) == (False, Severity.WARNING)
    assert (setting.for_snapshots, setting.resolve_after_snapshots) == (2, 3)


def test_lists_become_tuples_and_words_become_kinds() -> None:
    assert registry.rule_options("nonfinite", {"ignore": ["a.*"]}) == Nonfinite.Options(ignore=("a.*",))
    options = registry.rule_options("unreadable_checkpoint", {"kinds": ["corrupt"]})
    assert getattr(options, "kinds", None) == (ProblemKind.CORRUPT,)


def test_all_errors_come_at_once_each_with_the_path_of_its_key() -> None:
    errors = errors_of(
        "gradient_explosion",
        {
            "factr": 3,
            "factor": 0.5,
            "baseline_checkpoints": "many",
            "enabled": "maybe",
            "severity": "dire",
            "for_snapshots": -1,
        },
    )
    assert [e.split(":")[0] for e in sorted(errors)] == [
        "rules.gradient_explosion.baseline_checkpoints",
        "rules.gradient_explosion.enabled",
        "rules.gradient_explosion.factor",
        "rules.gradient_explosion.factr",
        "rules.gradient_explosion.for_snapshots",
        "rules.gradient_explosion.severity",
    ]
    assert "rules.gradient_explosion.factr: unknown option; did you mean factor?" in errors


def test_an_unknown_option_lists_the_known_ones() -> None:
    assert errors_of("nonfinite", {"zzz": 1}) == (
        "rules.nonfinite.zzz: unknown option; known are accept_masks, enabled, for_snapshots, ignore, "
        "resolve_after_snapshots, severity",
    )


def test_the_path_can_be_given() -> None:
    assert errors_of("nonfinite", {"ignore": 5}, path="runs.gpt.rules.nonfinite")[0].startswith(
        "runs.gpt.rules.nonfinite.ignore: "
    )


def test_an_unknown_name_says_what_was_probably_meant() -> None:
    with pytest.raises(UnknownNameError, match="did you mean nonfinite"):
        registry.rule("nonfinit")
    with pytest.raises(UnknownNameError, match="installed are alertmanager, apprise, command, email, log, "):
        registry.notifier_class("carrier_pigeon")


def test_a_notifier_configuration_reports_all_errors_and_no_secret() -> None:
    with pytest.raises(OptionsError) as caught:
        registry.notifier_config(
            "email",
            {"host": "", "port": 0, "to": ["nobody"], "password": "hunter2-secret", "securty": "ssl"},
            path="notify.0",
        )
    errors = caught.value.errors
    assert [e.split(":")[0] for e in sorted(errors)] == [
        "notify.0.from",
        "notify.0.host",
        "notify.0.port",
        "notify.0.securty",
        "notify.0.to.0",
    ]
    assert "notify.0.from: is required" in errors
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.org/services/T0SECRET",
        "ftp://hooks.example.org/T0SECRET",
        "https://",
        "T0SECRET",
        "https://user:T0SECRET@hooks.example.org/x",
        "https://hooks.example.org/T0SECRET\r\nX-Evil: 1",
        "https://[T0SECRET/",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(OptionsError) as caught:
        registry.notifier_config("slack", {"url": url})
    assert "T0SECRET" not in str(caught.value)
    assert caught.value.errors[0].startswith("notify.slack")


def test_plain_http_is_accepted_for_this_machine_and_where_it_is_allowed() -> None:
    registry.notifier_config("slack", {"url": "http://127.0.0.1:8000/hook"})
    registry.notifier_config("slack", {"url": "http://chat.example.org/hook", "allow_http": True})


@pytest.fixture
def _plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    points = [
        importlib.metadata.EntryPoint("mine", "alerts.rules.nonfinite:Nonfinite", registry.RULES_GROUP),
        importlib.metadata.EntryPoint("broken", "no_such_module_of_mine:Rule", registry.RULES_GROUP),
    ]

    def found(*, group: str, name: str | None = None) -> list[importlib.metadata.EntryPoint]:
        return [p for p in points if p.group == group and name in (None, p.name)]

    monkeypatch.setattr(registry, "entry_points", found)
    registry._load_entry.cache_clear()
    yield
    registry._load_entry.cache_clear()


@pytest.mark.usefixtures("_plugins")
def test_a_rule_of_somebody_else_is_found_by_its_entry_point() -> None:
    assert "mine" in registry.rule_names()
    loaded: Rule = registry.rule("mine")
    assert isinstance(loaded, Nonfinite)


@pytest.mark.usefixtures("_plugins")
def test_a_plugin_that_cannot_be_loaded_says_so() -> None:
    with pytest.raises(PluginError, match="rule broken cannot be loaded: ModuleNotFoundError"):
        registry.rule("broken")
