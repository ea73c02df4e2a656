"""`rules test`: a stored run judged again."""

from __future__ import annotations

from pathlib import Path

from tests.monitor.commands.conftest import Cli, Stored


def test_a_replay_under_the_same_settings_fires_what_fired(cli: Cli, stored: Stored) -> None:
    before = cli("alerts", "--run", "runs/bad", "--db", stored.database, "--json").document
    ended = cli("rules", "test", "runs/bad", "--db", stored.database, "--json")
    assert (ended.code, ended.err) == (0, "")
    replayed = ended.document
    assert (replayed["run"], replayed["n_snapshots"], replayed["failures"]) == ("runs/bad", 4, {})
    fired = {(a["rule"], a["fingerprint"]) for a in before if a["fired_at"] is not None}
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
