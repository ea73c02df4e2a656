"""Which rules and notifiers there are, and what may be set for them. The table only maps names; facts are on classes.

Others add theirs through the entry points `ckptwatch.rules` and `ckptwatch.notifiers`. All errors of a mapping are
reported at once, each with the path of its key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from alerts.notifier import Notifier
from alerts.rule import Rule, RuleSetting
from storage.records import Severity

RULES_GROUP = "ckptwatch.rules"
NOTIFIERS_GROUP = "ckptwatch.notifiers"

RULES: Mapping[str, str] = {
    "all_zero": "alerts.rules.all_zero:AllZero",
    "clip_saturation": "alerts.rules.clip_saturation:ClipSaturation",
    "dead_units": "alerts.rules.dead_units:DeadUnits",
    "drift_spike": "alerts.rules.drift_spike:DriftSpike",
    "duplicate_checkpoint": "alerts.rules.duplicate_checkpoint:DuplicateCheckpoint",
    "eps_domination": "alerts.rules.eps_domination:EpsDomination",
    "frozen_low_precision": "alerts.rules.frozen_low_precision:FrozenLowPrecision",
    "gradient_explosion": "alerts.rules.gradient_explosion:GradientExplosion",
    "gradient_vanishing": "alerts.rules.gradient_vanishing:GradientVanishing",
    "hyperparameters": "alerts.rules.hyperparameters:Hyperparameters",
    "impossible_adam_state": "alerts.rules.impossible_adam_state:ImpossibleAdamState",
    "layout_change": "alerts.rules.layout_change:LayoutChange",
    "log_contradiction": "alerts.rules.log_contradiction:LogContradiction",
    "loss_not_decreasing": "alerts.rules.loss_not_decreasing:LossNotDecreasing",
    "loss_scale_collapse": "alerts.rules.loss_scale_collapse:LossScaleCollapse",
    "loss_spike": "alerts.rules.loss_spike:LossSpike",
    "nonfinite": "alerts.rules.nonfinite:Nonfinite",
    "oscillation": "alerts.rules.oscillation:Oscillation",
    "overfit": "alerts.rules.overfit:Overfit",
    "overtraining": "alerts.rules.overtraining:Overtraining",
    "poor_initialisation": "alerts.rules.poor_initialisation:PoorInitialisation",
    "replica_mismatch": "alerts.rules.replica_mismatch:ReplicaMismatch",
    "resume_discontinuity": "alerts.rules.resume_discontinuity:ResumeDiscontinuity",
    "second_moment_frozen": "alerts.rules.second_moment_frozen:SecondMomentFrozen",
    "similar_runs": "alerts.rules.similar_runs:SimilarRuns",
    "size_change": "alerts.rules.size_change:SizeChange",
    "stalled_run": "alerts.rules.stalled_run:StalledRun",
    "tree_depth": "alerts.rules.tree_depth:TreeDepth",
    "unchanged_tensor": "alerts.rules.unchanged_tensor:UnchangedTensor",
    "unreadable_checkpoint": "alerts.rules.unreadable_checkpoint:UnreadableCheckpoint",
    "untouched_since_init": "alerts.rules.untouched_since_init:UntouchedSinceInit",
    "update_ratio": "alerts.rules.update_ratio:UpdateRatio",
    "variance_range": "alerts.rules.variance_range:VarianceRange",
    "weight_explosion": "alerts.rules.weight_explosion:WeightExplosion",
}

NOTIFIERS: Mapping[str, str] = {
    "alertmanager": "alerts.notifiers.alertmanager:AlertmanagerNotifier",
    "apprise": "alerts.notifiers.apprise:AppriseNotifier",
    "command": "alerts.notifiers.command:CommandNotifier",
    "email": "alerts.notifiers.email:EmailNotifier",
    "log": "alerts.notifiers.log:LogNotifier",
    "slack": "alerts.notifiers.slack:SlackNotifier",
    "webhook": "alerts.notifiers.webhook:WebhookNotifier",
}

SETTING_KEYS = ("enabled", "severity", "for_snapshots", "resolve_after_snapshots")
COUNT_MAX = 1000


class RegistryError(Exception):
    """A rule or notifier cannot be used.

    RegistryError
    ├── UnknownNameError   nothing of that name is installed
    ├── PluginError        it is installed, but cannot be loaded
    └── OptionsError       its options are wrong
    """


class UnknownNameError(RegistryError):
    """No rule or notifier has this name."""


class PluginError(RegistryError):
    """The code behind a name cannot be loaded."""


class OptionsError(RegistryError):
    """A mapping of options is wrong; `errors` are all reasons, each beginning with the key's path."""

    def __init__(self, errors: tuple[str, ...]) -> None:
        super().__init__("; ".join(errors))
        self.errors = errors


def rule_names() -> tuple[str, ...]:
    """Return the names of all installed rules, sorted."""
    return _names(RULES, RULES_GROUP)


def notifier_names() -> tuple[str, ...]:
    """Return the kinds of all installed notifiers, sorted."""
    return _names(NOTIFIERS, NOTIFIERS_GROUP)


def rule(name: str) -> Rule:
    """Return the rule of a name; raise UnknownNameError or PluginError."""
    return cast(Rule, _load(name, RULES, RULES_GROUP, "rule")())


def notifier_class(kind: str) -> type[Notifier]:
    """Return the class of a kind of notifier; raise UnknownNameError or PluginError."""
    return cast("type[Notifier]", _load(kind, NOTIFIERS, NOTIFIERS_GROUP, "notifier"))


def rule_options(name: str, mapping: Mapping[str, object], *, path: str | None = None) -> object:
    """Return the rule's options made from a mapping; raise OptionsError with all errors. Defaults fill the rest."""
    path = path or f"rules.{name}"
    model = rule(name).Options
    known = [f.name for f in fields(model)]
    errors = [_unknown(f"{path}.{key}", str(key), [*known, *SETTING_KEYS]) for key in mapping if key not in known]
    options: object = None
    try:
        options = TypeAdapter(model).validate_python({k: v for k, v in mapping.items() if k in known})
    except ValidationError as error:
        errors += _lines(error, path, known)
    if errors:
        raise OptionsError(tuple(errors))
    return options


class _SettingKeys(BaseModel):
    model_config = ConfigDict(extra="forbid")

    enabled: bool | None = None
    severity: Literal["info", "warning", "critical"] | None = None
    for_snapshots: int | None = Field(default=None, ge=0, le=COUNT_MAX)
    resolve_after_snapshots: int | None = Field(default=None, ge=0, le=COUNT_MAX)


def rule_setting(name: str, mapping: Mapping[str, object], *, path: str | None = None) -> RuleSetting:
    """Return a rule with its options and the keys every rule has; raise OptionsError with all errors at once.

    Every rule has `enabled`, `severity` (info, warning, critical), `for_snapshots` and `resolve_after_snapshots`. A
    rule whose class says `on_by_default = False` is off unless it is enabled here.
    """
    path = path or f"rules.{name}"
    common = {key: value for key, value in mapping.items() if key in SETTING_KEYS}
    own = {key: value for key, value in mapping.items() if key not in SETTING_KEYS}
    errors: list[str] = []
    options: object = None
    keys = _SettingKeys()
    try:
        keys = _SettingKeys.model_validate(common)
    except ValidationError as error:
        errors += _lines(error, path, SETTING_KEYS)
    try:
        options = rule_options(name, own, path=path)
    except OptionsError as error:
        errors += error.errors
    if errors:
        raise OptionsError(tuple(errors))
    chosen = rule(name)
    return RuleSetting(
        rule=chosen,
        options=options,
        enabled=getattr(chosen, "on_by_default", True) if keys.enabled is None else keys.enabled,
        severity=None if keys.severity is None else Severity[keys.severity.upper()],
        for_snapshots=keys.for_snapshots,
        resolve_after_snapshots=keys.resolve_after_snapshots,
    )


def notifier_config(kind: str, mapping: Mapping[str, object], *, path: str | None = None) -> BaseModel:
    """Return the notifier's configuration made from a mapping; raise OptionsError with all errors, without secrets."""
    model = cast("type[BaseModel]", notifier_class(kind).Config)
    try:
        return model.model_validate(dict(mapping))
    except ValidationError as error:
        raise OptionsError(_lines(error, path or f"notify.{kind}", _config_keys(model))) from None


def build_notifier(kind: str, config: BaseModel) -> Notifier:
    """Return a notifier ready to send; nothing is connected yet."""
    return notifier_class(kind)(config)


def _config_keys(model: type[BaseModel]) -> list[str]:
    return [info.alias or name for name, info in model.model_fields.items()]


def _unknown(place: str, key: str, known: Sequence[str]) -> str:
    close = get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known)) or 'none'}"
    return f"{place}: unknown option; {hint}"


def _lines(error: ValidationError, path: str, known: Sequence[str]) -> tuple[str, ...]:
    """Write each error as "path.key: reason"; the value itself is left out, since it may be a secret."""
    lines = []
    for item in error.errors(include_input=False, include_url=False, include_context=False):
        place = ".".join([path, *(str(part) for part in item["loc"])])
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            lines.append(_unknown(place, str(item["loc"][-1]), known))
        elif item["type"] in ("missing", "missing_argument"):
            lines.append(f"{place}: is required")
        else:
            reason = item["msg"].removeprefix("Value error, ")
            lines.append(f"{place}: {reason[:1].lower()}{reason[1:]}")
    return tuple(lines)


def _names(table: Mapping[str, str], group: str) -> tuple[str, ...]:
    return tuple(sorted({*table, *(point.name for point in entry_points(group=group))}))


@cache
def _load_entry(name: str, target: str | None, group: str, what: str) -> type[Any]:
    try:
        if target is not None:
            module, _, attribute = target.partition(":")
            return cast("type[Any]", getattr(import_module(module), attribute))
        for point in entry_points(group=group, name=name):
            return cast("type[Any]", point.load())
    except Exception as error:
        raise PluginError(f"{what} {name} cannot be loaded: {type(error).__name__}: {error}") from error
    raise UnknownNameError(f"there is no {what} named {name!r}")


def _load(name: str, table: Mapping[str, str], group: str, what: str) -> type[Any]:
    try:
        return _load_entry(name, table.get(name), group, what)
    except UnknownNameError:
        names = _names(table, group)
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"installed are {', '.join(names)}"
        raise UnknownNameError(f"there is no {what} named {name!r}; {hint}") from None
