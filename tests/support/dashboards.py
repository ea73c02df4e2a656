"""The shipped dashboards as tests see them: every panel, and every query with its variables filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards"
FILES = sorted(DASHBOARDS.glob("*.json"))
ALL: Mapping[str, str] = {"job": ".*", "run": ".*", "group": ".*", "__rate_interval": "1m"}


def load(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def panels(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in document["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", ())
        else:
            yield panel


def queries(values: Mapping[str, str] = ALL) -> list[tuple[str, str, str]]:
    """Return (dashboard, panel, expression) for every query, variables replaced."""
    return [
        (path.stem, panel["title"], fill(target["expr"], values))
        for path in FILES
        for panel in panels(load(path))
        for target in panel["targets"]
    ]


def fill(expression: str, values: Mapping[str, str] = ALL) -> str:
    """Replace the variables of Grafana; one that is not known is an error of the dashboard."""
    return re.sub(r"\$\{?(\w+)\}?", lambda match: values[match[1]], expression)
