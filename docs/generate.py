"""Write the parts of the documentation that the code knows better: `python docs/generate.py`, or `make docs`.

Such a part stands between `<!-- generated: NAME -->` and `<!-- end -->` in a page; everything around it is written by
hand. A test holds every committed page equal to what this writes. It prints what it changed and reads no configuration.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from pydantic import BaseModel

from alerts import registry
from alerts.notifier import joins
from monitor.read.formats_page import built_in_notes, format_sections, format_table
from monitor.show.aggregate import STATISTICS
from monitor.show.exporter import OWN_METRICS, RUN_METRICS
from monitor.show.telemetry import Telemetry

DOCS = Path(__file__).resolve().parent
RELIABILITY = DOCS.parent / "benchmarks" / "results" / "reliability.json"
PROMETHEUS_RULES = DOCS.parent / "deploy" / "prometheus" / "rules" / "ckptwatch.yml"
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(\n<!-- end -->)", re.DOTALL)
UNITS: Mapping[str, str] = {
    "_timestamp_seconds": "Unix seconds",
    "_seconds": "seconds",
    "_bytes": "bytes",
    "_ratio": "ratio",
    "_step": "steps",
    "_elements": "elements",
}


def run_metrics() -> str:
    """Return the table of what is exported about each run."""
    rows = [(_code(name), _codes(labels), _unit(name), text) for name, (text, labels) in RUN_METRICS.items()]
    return _table(("metric", "labels", "unit", "what it says"), rows)


def detail_metrics() -> str:
    """Return the table of the statistics of layer groups and tensors."""
    rows = [
        (_code(f"ckptwatch_group_{name}"), _code(f"ckptwatch_tensor_{name}"), text) for name, text in STATISTICS.items()
    ]
    return _table(("group", "tensor", "what it says"), rows)


def own_metrics() -> str:
    """Return the table of what ckptwatch says about itself."""
    made = CollectorRegistry()
    Telemetry(made, version="1", notifiers=["slack"], rules=["nonfinite"], exporters=["otlp"])
    rows = [
        (_code(_queried(family)), family.type, _codes(_labels(family)), family.documentation)
        for family in made.collect()
    ]
    rows += [(_code(name), "gauge", "", text) for name, text in OWN_METRICS.items()]
    return _table(("metric", "type", "labels", "what it says"), rows)


def rule_table() -> str:
    """Return the table of all rules."""
    rows = []
    for name in registry.RULES:
        rule = registry.rule(name)
        needs = ", ".join(need.value for need in rule.needs)
        asked = "also as time goes by" if rule.on_tick else "with each checkpoint"
        on = "on" if getattr(rule, "on_by_default", True) else "off"
        rows.append((f"[`{name}`](rules/{name}.md)", _first_line(type(rule)), rule.severity.label, needs, asked, on))
    return _table(("rule", "finds", "severity", "needs", "asked", "default"), rows)


def rule_options() -> str:
    """Return the table of the options of all rules, with defaults and ranges."""
    rows = []
    for name in registry.RULES:
        model = registry.rule(name).Options
        hints = get_type_hints(model, include_extras=True)
        for field in dataclasses.fields(model):
            rows.append((_code(name), _code(field.name), _value(_default(field)), _range(hints[field.name])))
    return _table(("rule", "option", "default", "range"), rows)


def notifier_table() -> str:
    """Return the table of all kinds of receivers."""
    rows = []
    for kind in registry.NOTIFIERS:
        found = registry.notifier_class(kind)
        joined = "joined by run" if joins(found) else "each alert on its own"
        rows.append((f"[`{kind}`](notifiers/{kind}.md)", _first_line(found), joined))
    return _table(("kind", "does", "messages"), rows)


def notifier_keys() -> str:
    """Return the table of the keys of all kinds of receivers."""
    rows = []
    for kind in registry.NOTIFIERS:
        model: type[BaseModel] = registry.notifier_class(kind).Config  # type: ignore[assignment]
        for name, field in model.model_fields.items():
            default = "required" if field.is_required() else _value(field.get_default(call_default_factory=True))
            if "SecretStr" in str(field.annotation):
                default += "; a secret, as `env:NAME` or `file:PATH`"
            rows.append((_code(kind), _code(field.alias or name), default))
    return _table(("kind", "key", "default"), rows)


def prometheus_alerts() -> str:
    """Return the table of the alerts that Prometheus can raise by the shipped rules."""
    document = yaml.safe_load(PROMETHEUS_RULES.read_text())
    rows = [
        (
            _code(rule["alert"]),
            rule["labels"]["severity"],
            str(rule.get("for", "0s")),
            " ".join(rule["annotations"]["description"].split()),
        )
        for group in document["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    return _table(("alert", "severity", "for", "meaning"), rows)


def reliability() -> str:
    """Return what the last runs of `make reliability` measured, beside what a release asks for."""
    found: dict[str, Any] = json.loads(RELIABILITY.read_text()) if RELIABILITY.exists() else {}
    rows: list[tuple[str, str, str, str]] = []
    if kills := found.get("kills"):
        n_at = {place: n for place, n in kills["n_kills"].items() if place != "random"}
        sums = kills["sums"]
        rows += [
            ("kills at random moments", f"{kills['n_kills'].get('random', 0)}", "1000", kills["date"]),
            (
                "kills at failpoints",
                f"{sum(n_at.values())} at {len(n_at)} of {kills['n_places']} places",
                "20 at each",
                kills["date"],
            ),
            (
                "rows that differ from a calm run, or damage",
                f"{len(kills['wrong'])} of {sums['rows_compared']}",
                "0",
                kills["date"],
            ),
            (
                "messages lost; sent twice",
                f"0 of {sums['messages']}; {sums['messages_twice']}" if not kills["wrong"] else "see the results",
                "0; at most one a kill",
                kills["date"],
            ),
        ]
    if damage := found.get("damaged_inputs"):
        rows += [
            (
                f"damaged checkpoints read, over {len(damage['by_format'])} formats",
                f"{damage['n_inputs']}",
                "1000000",
                damage["date"],
            ),
            ("of them, broken contracts of a reader", f"{len(damage['wrong'])}", "0", damage["date"]),
        ]
    if soak := found.get("soak"):
        slope, error = (soak[f"resident_slope_{part}bytes_an_hour"] / 2**20 for part in ("", "error_"))
        rows += [
            (
                f"soak at {soak['saves_a_minute']:.0f} saves a minute",
                f"{soak['seconds'] / 60:.0f} min",
                "60 min",
                soak["date"],
            ),
            ("growth of memory", f"{slope:.1f} ± {error:.1f} MiB an hour", "at most 1 MiB an hour", soak["date"]),
            ("descriptors", f"{soak['descriptors_min']} to {soak['descriptors_max']}", "constant", soak["date"]),
        ]
    return _table(("what", "measured", "asked for", "date"), rows)


BLOCKS: Mapping[str, Callable[[], str]] = {
    "reliability": reliability,
    "run_metrics": run_metrics,
    "detail_metrics": detail_metrics,
    "own_metrics": own_metrics,
    "rules": rule_table,
    "rule_options": rule_options,
    "notifiers": notifier_table,
    "notifier_keys": notifier_keys,
    "prometheus_alerts": prometheus_alerts,
    "formats": lambda: format_table(built_in_notes()),
    "format_details": lambda: format_sections(built_in_notes()),
}


def generated(text: str) -> str:
    """Return a page with every generated part made anew; raise KeyError for a part that nobody knows."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{BLOCKS[found[2]]()}{found[3]}", text)


def pages() -> list[Path]:
    """Return the pages that have a generated part."""
    return [page for page in sorted(DOCS.glob("*.md")) if BLOCK.search(page.read_text())]


def main() -> int:
    """Write all pages; return the exit status."""
    for page in pages():
        before = page.read_text()
        after = generated(before)
        if after != before:
            page.write_text(after)
            sys.stdout.write(f"wrote {page.relative_to(DOCS.parent)}\n")
    return 0


def _queried(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def _labels(family: Metric) -> list[str]:
    return [label for label in family.samples[0].labels if label != "le"] if family.samples else []


def _unit(name: str) -> str:
    return next((unit for ending, unit in UNITS.items() if name.endswith(ending)), "")


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0].rstrip(".")


def _default(field: dataclasses.Field[Any]) -> object:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _range(hint: object) -> str:
    """Return the limits that an annotation sets, such as ">= 0, <= 1"."""
    if get_origin(hint) is not Annotated:
        return ""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "length >=", "max_length": "length <="}
    found = []
    for info in get_args(hint)[1:]:
        for limit in (info, *getattr(info, "metadata", ())):
            found += [
                f"{sign} {getattr(limit, key):g}"
                for key, sign in signs.items()
                if getattr(limit, key, None) is not None
            ]
    return ", ".join(dict.fromkeys(found))


def _value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, float):
        return f"`{value:g}`"
    return _code(json.dumps(value)) if isinstance(value, bool | int | list | tuple | dict) else _code(str(value))


def _code(text: str) -> str:
    return f"`{text}`"


def _codes(texts: Iterable[str]) -> str:
    return ", ".join(map(_code, texts))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
