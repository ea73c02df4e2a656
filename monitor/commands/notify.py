"""`ckptwatch notify`: try the receivers before they are needed."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from alerts.message import compose, example_notification
from alerts.notifier import DeliveryError
from alerts.registry import build_notifier
from monitor.commands.console import CommandError, ConfigOption, ExitCode, console, load_config
from monitor.config import NotifierEntry, notifier_config

app = typer.Typer(help="Try the configured receivers.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Try the configured receivers."""


@app.command("test")
def send_test(
    name: Annotated[str | None, typer.Argument(help="Only this notifier.")] = None, config: ConfigOption = None
) -> None:
    """Send a message that says it is a test through every configured notifier, and say what each answered.

    Example: ckptwatch notify test --config config.yaml
    """
    entries = list(enumerate(load_config(config).notify.notifiers))
    chosen = [(index, entry) for index, entry in entries if name in (None, entry.label)]
    if not chosen:
        missing = "notify.notifiers is empty" if name is None else f"there is no notifier named {name!r}"
        raise CommandError(missing, ExitCode.USAGE)
    failures = [entry.label for index, entry in chosen if not _try(index, entry)]
    if failures:
        raise CommandError(f"not delivered: {', '.join(failures)}", ExitCode.ENVIRONMENT)


def _try(index: int, entry: NotifierEntry) -> bool:
    notifier = build_notifier(entry.kind, notifier_config(entry, f"notify.notifiers.{index}"))
    notification = example_notification(entry.label, time.time())
    try:
        notifier.send(notification, compose(notification))
    except DeliveryError as error:
        console().print(f"{entry.label}: failed: {error}", markup=False)
        return False
    console().print(f"{entry.label}: delivered", markup=False)
    return True
