"""Config to the settings of each part: pure translation, so that no part needs to know the configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import quote

from alerts import registry as alert_registry
from alerts.announcing import Route
from alerts.engine import EngineSettings, RunOverride
from alerts.notifier import joins
from alerts.rule import RuleSetting
from monitor.claims import Claims
from monitor.config import (
    Config,
    ConfigError,
    ConfigProblem,
    NotifierEntry,
    default_database_url,
    resolve_secret,
    rule_settings,
)
from monitor.measure.confinement import WorkerLimits
from monitor.measure.options import MeasureOptions
from monitor.measure.workers import PoolOptions
from monitor.read.directories import claim_units, unit_marks
from monitor.show.web.guard import WebSettings
from monitor.watch.filesystem import NETWORK, filesystem_kind
from monitor.watch.names import DEFAULT_EXCLUDES, NameRules
from monitor.watch.runs import WatchRoot, resolve_roots
from monitor.watch.scanner import Scanner
from monitor.watch.settle import SettlePolicy, Tracker
from monitor.web_config import WebConfigFile
from storage import queries
from storage.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchParts:
    """Everything that finds checkpoints, one scanner a root."""

    roots: tuple[WatchRoot, ...]
    rules: NameRules
    scanners: tuple[Scanner, ...]
    tracker: Tracker


def engine_settings(config: Config, *, routes: bool = True) -> EngineSettings:
    """Return what the engine is told; without `routes` nobody is notified. Raises ConfigError."""
    mappings = {name: keys for name, keys in config.rules.items() if name != "overrides"}
    general = {setting.name: setting for setting in rule_settings(mappings)}
    rules = tuple(general.get(name) or _default(name) for name in alert_registry.rule_names())
    overrides = tuple(
        RunOverride(
            runs=override["runs"],
            # An override changes single keys: what it leaves out stays as the general section has it.
            rules=rule_settings({name: {**mappings.get(name, {}), **keys} for name, keys in override["rules"].items()}),
        )
        for override in config.rules.get("overrides", ())
    )
    entries = config.notify.notifiers if routes else ()
    return EngineSettings(
        rules=rules,
        overrides=overrides,
        routes=tuple(_route(entry, config.notify.group_wait_seconds) for entry in entries),
        windows=config.notify.maintenance,
        repeat_interval_seconds=config.notify.repeat_interval_seconds,
    )


def measure_options(config: Config) -> MeasureOptions:
    """Return how checkpoints are measured; raises ConfigError for values that make no sense together."""
    try:
        return MeasureOptions(
            sketch_buckets=config.measure.sketch_buckets,
            drift=config.measure.drift,
            exact_drift_bytes_max=config.measure.exact_bytes_max,
        )
    except ValueError as error:
        raise ConfigError([ConfigProblem(path="measure", message=str(error))]) from None


def bytes_per_second_of_worker(config: Config) -> int | None:
    """Return each worker's share of the limit for reading, None without a limit."""
    limit = config.measure.bytes_per_second
    return None if limit is None else max(limit // config.measure.workers, 1)


def back_off_seconds_max(config: Config) -> float:
    """Return how long reading one checkpoint may pause for others who wait for the disk: half of its time limit."""
    return config.measure.timeout_seconds / 2


def pool_options(config: Config) -> PoolOptions:
    """Return how many workers there are and what each may use."""
    measure = config.measure
    return PoolOptions(
        n_workers=measure.workers,
        task_timeout_seconds=measure.timeout_seconds,
        limits=WorkerLimits(memory_bytes_max=measure.memory_bytes_max, cpu_seconds_max=int(measure.timeout_seconds)),
    )


def watch_parts(config: Config, database: Database, *, incomplete_timeout_seconds: float | None = None) -> WatchParts:
    """Return scanners and a tracker that knows what the database holds; raises ConfigError for unusable roots."""
    watch = config.watch
    try:
        roots = resolve_roots([(root.path, root.name) for root in watch.roots])
    except ValueError as error:
        raise ConfigError([ConfigProblem(path="watch.roots", message=str(error))]) from None
    rules = NameRules.compile(watch.patterns, (*DEFAULT_EXCLUDES, *watch.excludes), unit_marks())
    policy = SettlePolicy(
        settle_seconds=watch.settle_seconds,
        incomplete_timeout_seconds=incomplete_timeout_seconds or watch.incomplete_timeout_seconds,
    )
    by_path = {root.path: root for root in roots}
    with database.read() as session:
        known = {
            signature for root in roots for stored in queries.known(session, root.path).values() for signature in stored
        }
    tracker = Tracker(
        run_of=lambda root, path: by_path[root].run_of(path),
        policy=policy,
        root_policies={
            root.path: replace(policy, settle_seconds=watch.settle_seconds_network)
            for root in roots
            if filesystem_kind(root.path) == NETWORK
        },
        known=known,
    )
    scanners = tuple(Scanner(root.path, rules, skip_directories=root.nested, claims_of=claim_units) for root in roots)
    return WatchParts(roots=roots, rules=rules, scanners=scanners, tracker=tracker)


def database_url(config: Config) -> str:
    """Return the database's address, a reference to a secret resolved; raises ConfigError.

    The whole address may be a secret, since it may hold a password.
    """
    url = config.storage.url
    if url is None:
        return default_database_url()
    if not url.startswith(("env:", "file:")):
        return url
    try:
        return resolve_secret(url).get_secret_value()
    except ValueError as error:
        raise ConfigError([ConfigProblem(path="storage.url", message=str(error))]) from None


def shared_claims(config: Config, database: Database) -> Claims | None:
    """Return this daemon's share of the work, None where the database is its alone."""
    return Claims(database, lease_seconds=config.storage.lease_seconds) if database.is_shared else None


def web_settings(config: Config) -> WebSettings:
    """Return how the page is guarded, secrets resolved; `config` was checked, so they are there."""
    auth = config.serve.auth
    return WebSettings(
        listen_host=config.serve.host,
        allowed_hosts=config.serve.allowed_hosts,
        token=None if auth.token is None else resolve_secret(auth.token).get_secret_value(),
        username=auth.username,
        password=None if auth.password is None else resolve_secret(auth.password).get_secret_value(),
        web_config=None if config.serve.web_config is None else WebConfigFile(config.serve.web_config),
    )


def page_link(config: Config, run: str) -> str | None:
    """Return the address of a run's page for messages, None where no external address is configured."""
    base = config.serve.external_url
    if base is None or not config.serve.enabled:
        return None
    return f"{base}/runs/{quote(run, safe='/', errors='surrogateescape')}"


def _route(entry: NotifierEntry, group_wait_seconds: float) -> Route:
    """Return how a notifier is told; a program gets every alert on its own, so for it there is nothing to wait for."""
    wait = group_wait_seconds if joins(alert_registry.notifier_class(entry.kind)) else 0.0
    return Route(notifier=entry.label, severity_min=entry.severity, wait_seconds=wait)


def _default(name: str) -> RuleSetting:
    return alert_registry.rule_setting(name, {})
