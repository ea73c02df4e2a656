"""The `ckptwatch` command line: one line a command, one place where errors become exit codes.

Only the module of the command that was asked for is imported, so that a short question starts fast.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from monitor import __version__
from monitor.commands.console import CommandError, ExitCode
from monitor.config import ConfigError
from monitor.read.reader import ReadError

COMMANDS: dict[str, str] = {
    "run": "monitor.commands.run:run",
    "scan": "monitor.commands.scan:scan",
    "inspect": "monitor.commands.inspect:inspect",
    "diff": "monitor.commands.diff:diff",
    "check": "monitor.commands.check:check",
    "export": "monitor.commands.export:export",
    "runs": "monitor.commands.runs:runs",
    "history": "monitor.commands.history:history",
    "watch": "monitor.commands.watch:watch",
    "plot": "monitor.commands.plot:plot",
    "report": "monitor.commands.report:report",
    "alerts": "monitor.commands.alerts:alerts",
    "silence": "monitor.commands.silence:silence",
    "last-good": "monitor.commands.last_good:last_good",
    "demo": "monitor.commands.demo:demo",
    "doctor": "monitor.commands.doctor:doctor",
    "config": "monitor.commands.config:app",
    "db": "monitor.commands.db:app",
    "notify": "monitor.commands.notify:app",
    "rules": "monitor.commands.rules:app",
}


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """Return the app with the command that `arguments` name, or with all of them where they name none."""
    app = typer.Typer(
        name="ckptwatch",
        help="The flight recorder for model weights.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    asked = next((a for a in arguments if a in COMMANDS or a == "--version"), None)
    for name, target in COMMANDS.items():
        if asked in (None, name):
            module, _, attribute = target.partition(":")
            command = getattr(importlib.import_module(module), attribute)
            if isinstance(command, typer.Typer):
                app.add_typer(command, name=name)
            else:
                app.command(name)(command)
    return app


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"ckptwatch {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The flight recorder for model weights: watches checkpoints, measures tensors, tells you when they go bad."""


def main() -> None:
    """Run the command line; every error that a user can mend ends in one line on stderr and its exit code."""
    try:
        build_app(sys.argv[1:])()
    except ConfigError as error:
        for problem in error.problems:
            sys.stderr.write(f"ckptwatch: {problem}\n")
        raise SystemExit(ExitCode.USAGE) from None
    except CommandError as error:
        _fail(str(error), error.code)
    except ReadError as error:
        _fail(f"{error.kind}: {error}", ExitCode.UNREADABLE)
    except BrokenPipeError:  # the reader of our output has gone, for example `| head`
        sys.stderr.close()
        raise SystemExit(ExitCode.WELL) from None


def _fail(message: str, code: ExitCode) -> None:
    sys.stderr.write(f"ckptwatch: {message}\n")
    raise SystemExit(code) from None


if __name__ == "__main__":
    main()
