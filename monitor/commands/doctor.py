"""`ckptwatch doctor`: whether this machine is fit, and what would mend it."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from monitor.assembly import database_url, pool_options
from monitor.commands.console import (
    ConfigOption,
    DatabaseOption,
    ExitCode,
    JsonOption,
    console,
    database_overrides,
    load_config,
    print_json,
    root_overrides,
    table,
)
from monitor.config import Config, ConfigError
from monitor.diagnosis.database import diagnose_database
from monitor.diagnosis.finding import Condition, Diagnosis, problem
from monitor.diagnosis.machine import diagnose_machine
from monitor.diagnosis.page import diagnose_page
from monitor.diagnosis.receivers import diagnose_receivers
from monitor.diagnosis.roots import diagnose_roots


def doctor(
    roots: Annotated[
        list[str] | None, typer.Argument(metavar="[ROOT]...", help="Directories to look at as well.")
    ] = None,
    config: ConfigOption = None,
    db: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Look at what the daemon needs, from the worker to the receivers, and say how to mend what is wrong.

    Exit 4 where something keeps ckptwatch from its work. Nothing is sent, and no checkpoint is opened.

    Example: ckptwatch doctor --config config.yaml
    """
    try:
        found = _diagnoses(load_config(config, watch=root_overrides(roots), storage=database_overrides(db)))
    except ConfigError as error:
        remedy = "mend the file; `ckptwatch config show` prints what applies"
        found = [problem("configuration", str(cause), remedy) for cause in error.problems]
    if json:
        print_json([_document(diagnosis) for diagnosis in found])
    else:
        _print(found)
    if any(diagnosis.condition is Condition.PROBLEM for diagnosis in found):
        raise typer.Exit(ExitCode.ENVIRONMENT)


def _diagnoses(settings: Config) -> list[Diagnosis]:
    return [
        *diagnose_machine(pool_options(settings)),
        *diagnose_roots(settings.watch, now=time.time()),
        *diagnose_database(database_url(settings)),
        *diagnose_page(settings.serve),
        *diagnose_receivers(settings.notify),
    ]


def _document(diagnosis: Diagnosis) -> dict[str, str]:
    return {
        "subject": diagnosis.subject,
        "condition": diagnosis.condition.value,
        "message": diagnosis.message,
        "remedy": diagnosis.remedy,
    }


def _print(found: list[Diagnosis]) -> None:
    rows = [[d.condition.value, d.subject, d.message + (f"\n→ {d.remedy}" if d.remedy else "")] for d in found]
    console().print(table(None, [("", "left"), ("subject", "left"), ("what was found", "left")], rows))
    n_problems = sum(d.condition is Condition.PROBLEM for d in found)
    n_warnings = sum(d.condition is Condition.WARNING for d in found)
    console().print(f"\n{n_problems} problems, {n_warnings} warnings")
