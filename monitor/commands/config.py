"""`ckptwatch config`: check the configuration, or show what it comes to."""

from __future__ import annotations

import json as json_module
import sys
from typing import Annotated

import typer
import yaml

from monitor.assembly import engine_settings, measure_options
from monitor.commands.console import ConfigOption, JsonOption, load_config, print_json
from storage.errors import hide_password

app = typer.Typer(help="Check or show the configuration.", no_args_is_help=True, rich_markup_mode=None)


@app.command("check")
def check(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Check the configuration and print every error with its key; nothing is started.

    Example: ckptwatch config check --config config.yaml
    """
    settings = load_config(config)
    measure_options(settings)
    enabled = [setting.name for setting in engine_settings(settings).rules if setting.enabled]
    notifiers = [entry.label for entry in settings.notify.notifiers]
    if json:
        print_json({"ok": True, "roots": len(settings.watch.roots), "rules": enabled, "notifiers": notifiers})
        return
    sys.stdout.write(
        f"ok: {len(settings.watch.roots)} roots; rules {', '.join(enabled)}; "
        f"notifiers {', '.join(notifiers) or 'none'}\n"
    )


@app.command("show")
def show(
    config: ConfigOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of YAML.")] = False,
) -> None:
    """Print the configuration as it comes to be from file, environment and defaults; secrets stay references.

    Example: ckptwatch config show --config config.yaml
    """
    settings = load_config(config)
    document = json_module.loads(settings.model_dump_json())
    if settings.storage.url is not None:
        document["storage"]["url"] = hide_password(settings.storage.url)
    if json:
        print_json(document)
    else:
        sys.stdout.write(yaml.safe_dump(document, sort_keys=False))
