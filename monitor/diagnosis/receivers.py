"""Whether there are receivers of alerts, and their settings and secrets are complete."""

from __future__ import annotations

from collections.abc import Sequence

from alerts.registry import build_notifier
from monitor.config import ConfigError, NotifyConfig, notifier_config
from monitor.diagnosis.finding import Diagnosis, problem, warning, well


def diagnose_receivers(config: NotifyConfig) -> Sequence[Diagnosis]:
    """Build every notifier as the daemon would; nothing is sent."""
    if not config.notifiers:
        return [warning("receivers", "nobody is told of alerts", "add a notifier under notify.notifiers")]
    found = []
    for index, entry in enumerate(config.notifiers):
        subject = f"receiver {entry.label}"
        try:
            build_notifier(entry.kind, notifier_config(entry, f"notify.notifiers.{index}"))
        except ConfigError as error:
            found.append(problem(subject, "; ".join(str(p) for p in error.problems), "mend the configuration"))
            continue
        found.append(well(subject, f"{entry.kind}, from {entry.minimum_severity} up; `ckptwatch notify test` tries it"))
    return found
