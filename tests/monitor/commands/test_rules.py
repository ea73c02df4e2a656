"""`rules`: the rules as they are set, and a stored run judged again."""

from __future__ import annotations

from pathlib import Path

from alerts import registry
from tests.monitor.commands.conftest import Cli, Stored


def test_a_replay_under_the_same_settings_fires_what_fired(cli: Cli, stored: Stored) -> None:
    before = cli("alerts", "--run", "runs/bad", "--db", stored.database, "--json").document
    ended = cli("rules", "test", "runs/bad", "--db", stored.database, "--json")
    assert (ended.code, ended.err) == (0, "")
    replayed = ended.document
    assert (replayed["run"], replayed["n_snapshots"], replayed["failures"]) == ("runs/bad", 4, {})
    # A run is replayed alone: what compares it with another run cannot fire.
    fired = {(a["rule"], a["fingerprint"]) for a in before if a["fired_at"] is not None and a["rule"] != "similar_runs"}
    assert fired
    assert {(a["rule"], a["fingerprint"]) for a in replayed["fired"]} == fired
    assert [a["step"] for a in replayed["fired"] if a["rule"] == "nonfinite"] == [30]


def test_a_rule_that_is_off_today_does_not_fire_and_the_stored_alerts_stay(
    cli: Cli, stored: Stored, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("rules:\n  nonfinite:\n    enabled: false\n")
    before = cli("alerts", "--db", stored.database, "--json").document
    replayed = cli("rules", "test", "runs/bad", "-c", config, "--db", stored.database, "--json").document
    assert "nonfinite" not in {a["rule"] for a in replayed["fired"]}
    assert cli("alerts", "--db", stored.database, "--json").document == before


def test_a_healthy_run_fires_nothing_and_says_how_much_was_judged(cli: Cli, stored: Stored) -> None:
    ended = cli("rules", "test", "runs/good", "--db", stored.database)
    assert ended.code == 0
    assert "0 alerts would have fired in 3 snapshots" in ended.out


def test_an_unknown_run_is_refused_with_what_to_do(cli: Cli, stored: Stored) -> None:
    ended = cli("rules", "test", "no/such", "--db", stored.database)
    assert ended.code != 0
    assert "`ckptwatch runs` lists them" in ended.err


def test_the_rules_are_listed_as_they_are_set_with_what_they_need(cli: Cli, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "rules:\n  nonfinite:\n    enabled: false\n  overfit:\n    enabled: true\n    severity: critical\n"
    )
    listed = {rule["rule"]: rule for rule in cli("rules", "-c", config, "--json").document}
    assert list(listed) == list(registry.rule_names())
    assert listed["nonfinite"] == {
        "rule": "nonfinite",
        "enabled": False,
        "severity": "critical",
        "needs": ["weights"],
        "on_tick": False,
        "finds": "NaN or infinity in the newest checkpoint",
    }
    assert (listed["overfit"]["enabled"], listed["overfit"]["severity"]) == (True, "critical")
    assert all(rule["needs"] and rule["finds"] for rule in listed.values())
    ended = cli("rules")
    assert ended.code == 0
    assert "optimizer state, two checkpoints" in ended.out
