"""`ckptwatch check`: a gate for scripts and CI."""

from __future__ import annotations

import os
import time
from typing import Annotated, Any

import typer

from alerts import registry
from alerts.rule import Needs, RuleSetting
from monitor.assembly import engine_settings
from monitor.commands.console import (
    CommandError,
    ConfigOption,
    ExitCode,
    JsonOption,
    console,
    load_config,
    print_json,
)
from monitor.commands.measuring import checkpoint_at, measure_files, size_on_disk
from monitor.files import Order
from monitor.measure.assemble import assemble
from storage.records import Checkpoint, Finding, Problem, Severity, StoredSnapshot, Window

_SINGLE_CHECKPOINT = {Needs.WEIGHTS, Needs.OPTIMIZER}


def check(
    path: Annotated[str, typer.Argument(help="A checkpoint.")],
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Ask every rule that one checkpoint alone can answer; exit 1 when one of them finds something.

    Example: ckptwatch check out/model.safetensors && publish out/
    """
    path = checkpoint_at(path)
    found = measure_files([Order(path=path)])[0]
    if isinstance(found, Problem):
        if json:
            print_json({"path": path, "problem": {"kind": found.kind.value, "message": found.message}, "findings": []})
        raise CommandError(f"{path}: {found.kind}: {found.message}", ExitCode.UNREADABLE)
    window = _window(path, found)
    findings: list[Finding] = []
    for setting in _settings(config):
        outcome = setting.rule.check(window, setting.options)
        findings += outcome.findings
    serious = [finding for finding in findings if finding.severity > Severity.INFO]
    if json:
        print_json({"path": path, "problem": None, "findings": [_finding(f) for f in findings]})
    else:
        for finding in findings:
            console().print(f"{finding.severity.label}: {finding.summary}", markup=False)
        if not serious:
            console().print(f"{path}: {len(found.tensors)} tensors, nothing found", markup=False)
    if serious:
        raise typer.Exit(ExitCode.BAD_NEWS)


def _settings(config: ConfigOption) -> list[RuleSetting]:
    chosen = engine_settings(load_config(config), routes=False).rules
    assert {setting.name for setting in chosen} == set(registry.rule_names())
    return [s for s in chosen if s.enabled and set(s.rule.needs) <= _SINGLE_CHECKPOINT]


def _window(path: str, found: Any) -> Window:
    now = time.time()
    absolute = os.path.abspath(path)
    checkpoint = Checkpoint(
        run=os.path.basename(path),
        root=os.path.dirname(absolute),
        path=absolute,
        files=(),
        signature="",
        written_at=os.path.getmtime(absolute),
    )
    snapshot = assemble(checkpoint, found, None, 1, measured_at=now, duration_seconds=0.0)
    stored = StoredSnapshot(
        id=0,
        run=checkpoint.run,
        root=checkpoint.root,
        attempt=1,
        path=absolute,
        signature="",
        format=found.format,
        step=found.step,
        epoch=found.epoch,
        status=snapshot.status,
        problem=None,
        size_bytes=size_on_disk(absolute) or 0,
        written_at=checkpoint.written_at,
        measured_at=now,
        n_tensors=snapshot.n_tensors,
        n_parameters=snapshot.n_parameters,
        n_nonfinite=snapshot.n_nonfinite,
        weight_norm=snapshot.weight_norm,
        update_ratio=None,
        gradient=snapshot.gradient,
        first_bad_tensor=snapshot.first_bad_tensor,
        reference_step=None,
        duration_seconds=0.0,
        bytes_read=snapshot.bytes_read,
        worst_severity=None,
    )
    return Window(
        run=checkpoint.run,
        snapshots=(stored,),
        tensors=snapshot.tensors,
        drifts=(),
        now=now,
        scalars=snapshot.scalars,
    )


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "severity": finding.severity.label,
        "step": finding.step,
        "subject": finding.subject,
        "value": finding.value,
        "threshold": finding.threshold,
        "summary": finding.summary,
    }
