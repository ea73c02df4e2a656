"""Write the three dashboards as JSON: `python deploy/grafana/generate.py`, or `--check` whether they are up to date.

Needs the dependency group `dashboards`. Here stands what is shown; how it looks stands in `panels`. Every panel has a
title, a description, a unit and the data source of the variable.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import dashboard as board
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from panels import (
    BAD_ABOVE_ZERO,
    GOOD_AT_ONE,
    GREEN,
    ORANGE,
    RED,
    Query,
    dashboard,
    grid,
    lines,
    number,
    rows,
    states,
    variable,
)

DASHBOARDS = Path(__file__).parent / "dashboards"
DAEMON = 'job=~"$job"'
RUN = 'job=~"$job", run=~"$run"'
GROUP = f'{RUN}, group=~"$group"'
HEALTH = {"1": ("healthy", GREEN), "0": ("not healthy", RED)}


def fleet() -> board.Dashboard:
    """Return the view over all runs: is anything wrong, and where."""
    made = dashboard("ckptwatch-fleet", "ckptwatch / Fleet", "All runs that ckptwatch watches: health, pace, alerts.")
    return _with(made, [*_fleet_numbers(), *_fleet_courses()])


def _fleet_numbers() -> list[Any]:
    return [
        number("Active runs", "Runs that are expected to write checkpoints.", f"sum(ckptwatch_run_active{{{DAEMON}}})"),
        number(
            "Runs not healthy",
            "Runs whose newest weights are not fit to go on with.",
            f"sum(1 - ckptwatch_run_healthy{{{DAEMON}}})",
            limits=BAD_ABOVE_ZERO,
        ),
        number(
            "Critical alerts",
            "Critical alerts that fire now.",
            f'sum(ckptwatch_alert_firing{{{DAEMON}, severity="critical"}})',
            limits=BAD_ABOVE_ZERO,
        ),
        number(
            "Unreadable",
            "Runs whose newest checkpoint cannot be read.",
            f"sum(1 - ckptwatch_checkpoint_readable{{{DAEMON}}})",
            limits=BAD_ABOVE_ZERO,
        ),
        number(
            "Longest without a checkpoint",
            "Time since the newest checkpoint, of the active run for which it is longest.",
            f"max((time() - ckptwatch_checkpoint_timestamp_seconds{{{DAEMON}}}) "
            f"and on (job, instance, run) ckptwatch_run_active{{{DAEMON}}} == 1)",
            unit="s",
        ),
        number(
            "Most steps to lose",
            "Training steps between the newest and the last good checkpoint, of the run for which it is most.",
            f"max(ckptwatch_checkpoint_step{{{DAEMON}}} - ckptwatch_run_last_good_step{{{DAEMON}}})",
            limits=BAD_ABOVE_ZERO,
        ),
    ]


def _fleet_courses() -> list[Any]:
    return [
        states(
            "Health",
            "Whether the newest weights of each run are fit to go on with.",
            Query(expr=f"ckptwatch_run_healthy{{{DAEMON}}}", legend="{{run}}"),
            words=HEALTH,
        ),
        rows(
            "Runs",
            "Each run with its newest and its last good step.",
            [
                Query(expr=f"max by (run) (ckptwatch_checkpoint_step{{{DAEMON}}})", is_table=True),
                Query(expr=f"max by (run) (ckptwatch_run_last_good_step{{{DAEMON}}})", is_table=True),
                Query(expr=f"max by (run) (ckptwatch_run_weight_norm{{{DAEMON}}})", is_table=True),
                Query(expr=f"sum by (run) (ckptwatch_alert_firing{{{DAEMON}}})", is_table=True),
            ],
            names={
                "run": "Run",
                "Value #A": "Step",
                "Value #B": "Last good step",
                "Value #C": "Weight norm",
                "Value #D": "Alerts firing",
            },
        ),
        lines(
            "Alerts firing",
            "Alerts that fire, by rule.",
            Query(
                expr=f"sum by (rule, severity) (ckptwatch_alert_firing{{{DAEMON}}})", legend="{{rule}} ({{severity}})"
            ),
        ),
        lines(
            "Update ratio",
            "Relative change of all parameters per training step. Usually about 0.001 or less, and slowly falling.",
            Query(expr=f"ckptwatch_run_update_ratio{{{DAEMON}}}", legend="{{run}}"),
            logarithmic=True,
        ),
        lines(
            "Gradient norm",
            "Inferred from the optimizer's state in the checkpoints, by run and source.",
            Query(expr=f"ckptwatch_run_gradient_norm{{{DAEMON}}}", legend="{{run}} ({{source}})"),
            logarithmic=True,
        ),
        lines(
            "Time since the newest checkpoint",
            "How long each run has not written a checkpoint.",
            Query(expr=f"time() - ckptwatch_checkpoint_timestamp_seconds{{{DAEMON}}}", legend="{{run}}"),
            unit="s",
        ),
    ]


def run() -> board.Dashboard:
    """Return the view of one run: what its weights do, layer by layer."""
    made = dashboard("ckptwatch-run", "ckptwatch / Run", "One run: its checkpoints, weights and layers over time.")
    names = 'label_values(ckptwatch_run_active{job=~"$job"}, run)'
    groups = 'label_values(ckptwatch_group_weight_norm{job=~"$job", run=~"$run"}, group)'
    made = made.with_variable(variable("run", "Run", names, multi=False))
    made = made.with_variable(variable("group", "Layer group", groups, multi=True))
    return _with(made, [*_run_numbers(), *_run_courses(), *_run_layers()])


def _run_numbers() -> list[Any]:
    return [
        number(
            "Healthy",
            "Whether the newest weights are fit to go on with.",
            f"min(ckptwatch_run_healthy{{{RUN}}})",
            unit="bool_yes_no",
            limits=GOOD_AT_ONE,
        ),
        number("Step", "Training step of the newest checkpoint.", f"max(ckptwatch_checkpoint_step{{{RUN}}})"),
        number(
            "Last good step",
            "Training step of the newest checkpoint worth resuming from; `ckptwatch last-good` prints its path.",
            f"max(ckptwatch_run_last_good_step{{{RUN}}})",
        ),
        number(
            "NaN and infinity",
            "Elements of parameters and optimizer state that are not finite.",
            f'sum(ckptwatch_run_nonfinite_elements{{{RUN}, kind=~"parameter|optimizer"}})',
            limits=BAD_ABOVE_ZERO,
        ),
        number(
            "Since the newest checkpoint",
            "Time since the newest checkpoint was written.",
            f"min(time() - ckptwatch_checkpoint_timestamp_seconds{{{RUN}}})",
            unit="s",
        ),
        number(
            "Size",
            "Size on disk of the newest checkpoint.",
            f"max(ckptwatch_checkpoint_size_bytes{{{RUN}}})",
            unit="bytes",
        ),
    ]


def _run_courses() -> list[Any]:
    return [
        states(
            "Alerts",
            "Which rules hit, and when.",
            Query(expr=f"ckptwatch_alert_firing{{{RUN}}} > bool 0", legend="{{rule}}"),
            words={"1": ("firing", RED), "0": ("quiet", GREEN)},
        ),
        lines(
            "Weight norm",
            "L2 norm of all parameters.",
            Query(expr=f"ckptwatch_run_weight_norm{{{RUN}}}", legend="{{run}}"),
        ),
        lines(
            "Update ratio",
            "Relative change of all parameters per training step.",
            Query(expr=f"ckptwatch_run_update_ratio{{{RUN}}}", legend="{{run}}"),
            logarithmic=True,
        ),
        lines(
            "Gradient norm",
            "Inferred from the optimizer's state: the mean over the steps between two checkpoints (adam_window), or "
            "over the optimizer's memory (adam_ema).",
            Query(expr=f"ckptwatch_run_gradient_norm{{{RUN}}}", legend="{{source}}"),
            logarithmic=True,
        ),
        lines(
            "NaN and infinity",
            "Elements that are not finite, by kind of tensor. A mask of -Inf is a buffer.",
            Query(expr=f"ckptwatch_run_nonfinite_elements{{{RUN}}}", legend="{{kind}}"),
        ),
    ]


def _run_layers() -> list[Any]:
    by_group = [
        ("Weight norm", "weight_norm", "L2 norm of the parameters of each layer group.", "short", True),
        ("Gradient", "gradient_rms", "Root mean square gradient, inferred from Adam's state.", "short", True),
        ("Standard deviation", "std", "Population standard deviation of the weights.", "short", False),
        ("Largest absolute value", "abs_max", "Largest absolute value of the weights.", "short", True),
        ("Mean", "mean", "Mean of the weights.", "short", False),
        ("Zeros", "zero_ratio", "Share of elements that are exactly zero.", "percentunit", False),
    ]
    return [
        grid(
            "Update ratio by layer group",
            "Relative change per training step, one row a layer group: where does it move?",
            Query(expr=f"ckptwatch_group_update_ratio{{{GROUP}}}", legend="{{group}}"),
        ),
        *(
            lines(
                f"{title} by layer group",
                description,
                Query(expr=f"ckptwatch_group_{name}{{{GROUP}}}", legend="{{group}}"),
                unit=unit,
                logarithmic=logarithmic,
            )
            for title, name, description, unit, logarithmic in by_group
        ),
        lines(
            "NaN and infinity by layer group",
            "Elements of parameters and buffers that are not finite.",
            Query(expr=f"ckptwatch_group_nonfinite_elements{{{GROUP}}}", legend="{{group}}"),
            span=24,
        ),
    ]


def daemon() -> board.Dashboard:
    """Return the view of ckptwatch itself: does it keep up, and does it reach people."""
    made = dashboard("ckptwatch-daemon", "ckptwatch / Daemon", "ckptwatch itself: does it keep up and reach people?")

    return _with(made, [*_daemon_numbers(), *_daemon_work(), *_daemon_messages(), *_daemon_faults()])


def _rate(name: str, by: str = "instance") -> str:
    return f"sum by ({by}) (rate({name}{{{DAEMON}}}[$__rate_interval]))"


def _quantiles(name: str) -> list[Query]:
    by_bucket = _rate(f"{name}_bucket", "le")
    return [Query(expr=f"histogram_quantile({q}, {by_bucket})", legend=f"{q:.0%}") for q in (0.5, 0.95)]


def _daemon_numbers() -> list[Any]:
    return [
        number("Up", "Daemons that answer the scrape.", f"sum(up{{{DAEMON}}})", limits=GOOD_AT_ONE),
        number(
            "Databases up",
            "Daemons whose database answers.",
            f"sum(ckptwatch_database_up{{{DAEMON}}})",
            limits=GOOD_AT_ONE,
        ),
        number(
            "Oldest unprocessed",
            "Age of the oldest complete checkpoint that is not measured yet.",
            f"max(ckptwatch_oldest_unprocessed_seconds{{{DAEMON}}})",
            unit="s",
            limits=((None, GREEN), (300, ORANGE), (900, RED)),
        ),
        number(
            "Series left out",
            "Series that did not fit under serve.max_series.",
            f"sum(ckptwatch_series_dropped{{{DAEMON}}})",
            limits=((None, GREEN), (1, ORANGE)),
        ),
        number(
            "Unexpected errors",
            "Errors in the last day that were caught so that the daemon could go on.",
            f"sum(increase(ckptwatch_supervisor_errors_total{{{DAEMON}}}[1d]))",
            limits=BAD_ABOVE_ZERO,
        ),
        number(
            "Since the last message",
            "Time since the last delivered notification, of the receiver for which it is shortest.",
            f"min(time() - (ckptwatch_last_notification_success_timestamp_seconds{{{DAEMON}}} > 0))",
            unit="s",
        ),
    ]


def _daemon_work() -> list[Any]:
    return [
        lines(
            "Checkpoints",
            "Checkpoints measured or found unreadable, per second.",
            Query(expr=_rate("ckptwatch_snapshots_total"), legend="{{instance}}"),
            unit="ops",
        ),
        lines(
            "Unreadable checkpoints",
            "Checkpoints that could not be measured, by problem, per second.",
            Query(expr=_rate("ckptwatch_snapshot_failures_total", "problem"), legend="{{problem}}"),
            unit="ops",
        ),
        lines(
            "Time to measure",
            "Time to read and measure one checkpoint: the median, and what 95 % stay below.",
            _quantiles("ckptwatch_measure_seconds"),
            unit="s",
        ),
        lines(
            "Time to scan",
            "Time to scan all watched roots once: the median, and what 95 % stay below.",
            _quantiles("ckptwatch_scan_seconds"),
            unit="s",
        ),
        lines(
            "Bytes read",
            "Read from checkpoints, per second.",
            Query(expr=_rate("ckptwatch_read_bytes_total"), legend="{{instance}}"),
            unit="Bps",
        ),
        lines(
            "Oldest unprocessed checkpoint",
            "Age of the oldest complete checkpoint that is not measured yet.",
            Query(expr=f"ckptwatch_oldest_unprocessed_seconds{{{DAEMON}}}", legend="{{instance}}"),
            unit="s",
        ),
    ]


def _daemon_messages() -> list[Any]:
    return [
        lines(
            "Messages delivered",
            "Notifications delivered, by receiver, per second.",
            Query(expr=_rate("ckptwatch_notifications_total", "notifier"), legend="{{notifier}}"),
            unit="ops",
        ),
        lines(
            "Messages that failed",
            "Tries that failed, by receiver, per second. They are tried again.",
            Query(expr=_rate("ckptwatch_notification_failures_total", "notifier"), legend="{{notifier}}"),
            unit="ops",
        ),
    ]


def _daemon_faults() -> list[Any]:
    return [
        lines(
            "Failures inside",
            "Measuring processes that died, files that a scan could not look at, and caught errors, per second.",
            [
                Query(expr=_rate("ckptwatch_worker_crashes_total"), legend="workers of {{instance}}"),
                Query(expr=_rate("ckptwatch_scan_failures_total"), legend="scans of {{instance}}"),
                Query(expr=_rate("ckptwatch_supervisor_errors_total"), legend="errors of {{instance}}"),
            ],
            unit="ops",
        ),
        lines(
            "Rules that failed",
            "Rules that ended with an unexpected error, per second.",
            Query(expr=_rate("ckptwatch_rule_errors_total", "rule"), legend="{{rule}}"),
            unit="ops",
        ),
        lines(
            "File system events",
            "Events received as hints, per second. None on network file systems: scans find the files there.",
            Query(expr=_rate("ckptwatch_events_total"), legend="{{instance}}"),
            unit="ops",
        ),
        lines(
            "Scrape",
            "How long Prometheus waits for /metrics.",
            Query(expr=f"scrape_duration_seconds{{{DAEMON}}}", legend="{{instance}}"),
            unit="s",
        ),
    ]


def _with(made: board.Dashboard, panels: Sequence[Any]) -> board.Dashboard:
    for panel in panels:
        made = made.with_panel(panel)
    return made


BOARDS: dict[str, Callable[[], board.Dashboard]] = {"fleet": fleet, "run": run, "daemon": daemon}


def main(arguments: Sequence[str]) -> int:
    """Write the files, or with `--check` say which differ."""
    differing = []
    for name, build in BOARDS.items():
        text = (
            json.dumps(json.loads(JSONEncoder(sort_keys=True).encode(build().build())), indent=2, sort_keys=True) + "\n"
        )
        path = DASHBOARDS / f"ckptwatch-{name}.json"
        if path.exists() and path.read_text() == text:
            continue
        differing.append(path.name)
        if "--check" not in arguments:
            DASHBOARDS.mkdir(exist_ok=True)
            path.write_text(text)
    sys.stdout.write("".join(f"{name}\n" for name in differing))
    return 1 if differing and "--check" in arguments else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
