"""config.yaml, environment and command line -> one frozen Config; every error reported at once with its key's path.

Sources, strongest first: command line, environment (`CKPTWATCH_STORAGE__URL`), the YAML file, defaults. Secrets are
references (`env:NAME` or `file:PATH`), resolved here and nowhere else. Nothing is started, opened or created.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from alerts import registry as alert_registry
from alerts.quiet import MaintenanceWindow
from alerts.rule import RuleSetting
from monitor.export_config import ExportConfig, secret_problems
from monitor.protect_config import ProtectConfig
from monitor.web_config import check_web_config
from storage.records import Severity

ENVIRONMENT_PREFIX = "CKPTWATCH_"
CONFIG_BYTES_MAX = 1_000_000
SECRET_BYTES_MAX = 64_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigProblem:
    """One thing wrong with the configuration: the key's dotted path ("" for the file itself) and what to do."""

    path: str
    message: str

    def __str__(self) -> str:
        """Return "path: message", fit for one line."""
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(Exception):
    """The configuration cannot be used; `problems` holds every reason found, in the order of the file."""

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        super().__init__("; ".join(str(p) for p in problems))
        self.problems = tuple(problems)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RootConfig(_Section):
    """A directory to watch, with an optional name that its runs begin with."""

    path: str
    name: str | None = None


class WatchConfig(_Section):
    """What is watched, and when a file counts as settled."""

    roots: tuple[RootConfig, ...] = ()
    patterns: tuple[str, ...] | None = None
    excludes: tuple[str, ...] = ()
    settle_seconds: float = Field(default=2.0, ge=0.1, le=3600)
    settle_seconds_network: float = Field(default=60.0, ge=0.1, le=3600)
    scan_interval_seconds: float = Field(default=60.0, ge=1, le=86400)
    polling: Literal["auto", "always", "never"] = "auto"
    incomplete_timeout_seconds: float = Field(default=900.0, ge=1, le=86400)
    run_idle_seconds: float = Field(default=86400.0, ge=60)
    skip_superseded: bool = False

    @field_validator("roots", mode="before")
    @classmethod
    def _accept_plain_paths(cls, value: object) -> object:
        if isinstance(value, str):
            value = [value]
        if isinstance(value, Sequence) and not isinstance(value, bytes):
            return tuple({"path": item} if isinstance(item, str) else item for item in value)
        return value


class MeasureConfig(_Section):
    """How checkpoints are measured, and what a worker may use."""

    workers: int = Field(default=1, ge=1, le=64)
    bytes_per_second: int | None = Field(default=None, ge=1_000_000)
    io_pressure_max: float | None = Field(default=10.0, gt=0, le=100)
    drift: Literal["auto", "sketch", "exact"] = "auto"
    exact_bytes_max: int = Field(default=512 * 2**20, ge=0)
    sketch_buckets: Literal[251, 509, 1021, 2039, 4093] = 1021  # primes
    timeout_seconds: float = Field(default=1800.0, ge=1)
    memory_bytes_max: int = Field(default=4 * 2**30, ge=2**29)


class StorageConfig(_Section):
    """Where snapshots are kept (None: a SQLite file in the user's state directory), and how many keep every sketch."""

    url: str | None = None
    lease_seconds: float = Field(default=60.0, ge=2, le=3600)
    sketches_recent: int = Field(default=64, ge=2, le=1_000_000)


class NotifierEntry(_Section):
    """One receiver: its kind, its name in metrics and the outbox, and from which severity on it is told."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str
    name: str | None = Field(default=None, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")
    minimum_severity: Literal["info", "warning", "critical"] = "warning"

    @property
    def label(self) -> str:
        """Return the name, or the kind where no name was given."""
        return self.name or self.kind

    @property
    def severity(self) -> Severity:
        """Return the minimum severity as a value that can be compared."""
        return Severity[self.minimum_severity.upper()]

    @property
    def options(self) -> dict[str, Any]:
        """Return the keys that belong to the notifier's own configuration, secrets still as references."""
        return dict(self.model_extra or {})


class NotifyConfig(_Section):
    """Who is told, and how often."""

    notifiers: tuple[NotifierEntry, ...] = ()
    group_wait_seconds: float = Field(default=5.0, ge=0, le=300)
    maintenance: tuple[MaintenanceWindow, ...] = ()
    repeat_interval_seconds: float = Field(default=4 * 3600.0, ge=60)
    dead_letter_seconds: float = Field(default=86400.0, ge=60)


class AuthConfig(_Section):
    """What a client must present; either a bearer token or a user with a password."""

    token: str | None = None
    username: str | None = None
    password: str | None = None


class ServeConfig(_Section):
    """The HTTP port, who may use it, and how much `/metrics` shows."""

    enabled: bool = True
    listen: str = "127.0.0.1:10470"
    allowed_hosts: tuple[str, ...] = ()
    external_url: str | None = None
    auth: AuthConfig = AuthConfig()
    web_config: str | None = Field(default=None, min_length=1)
    metrics_detail: Literal["off", "groups", "tensors"] = "groups"
    max_series: int = Field(default=10_000, ge=100, le=1_000_000)
    run_ttl_seconds: float = Field(default=900.0, ge=0)

    @field_validator("listen")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        host, separator, port = value.rpartition(":")
        if not separator or not host or not port.isdigit() or int(port) > 65535:
            raise ValueError("must be HOST:PORT, for example 127.0.0.1:10470")
        return value

    @field_validator("external_url")
    @classmethod
    def _is_web_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.startswith(("https://", "http://")) or not value.isascii() or any(c.isspace() for c in value):
            raise ValueError("must be an address such as https://ckptwatch.example.org")
        return value.rstrip("/")

    @property
    def host(self) -> str:
        """Return the address part of `listen`, without the brackets of IPv6."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Return the port part of `listen`; 0 asks the system for a free one."""
        return int(self.listen.rpartition(":")[2])

    @property
    def is_loopback(self) -> bool:
        """Say whether only this machine can reach the port."""
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")


class Config(_Section):
    """The whole configuration, checked."""

    watch: WatchConfig = WatchConfig()
    measure: MeasureConfig = MeasureConfig()
    storage: StorageConfig = StorageConfig()
    rules: dict[str, Any] = {}
    notify: NotifyConfig = NotifyConfig()
    serve: ServeConfig = ServeConfig()
    export: ExportConfig = ExportConfig()
    protect: ProtectConfig = ProtectConfig()


class _Sources(BaseSettings):
    """Merges the sources into plain dictionaries; Config judges them."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__", extra="allow")
    watch: dict[str, Any] = {}
    measure: dict[str, Any] = {}
    storage: dict[str, Any] = {}
    rules: dict[str, Any] = {}
    notify: dict[str, Any] = {}
    serve: dict[str, Any] = {}
    export: dict[str, Any] = {}
    protect: dict[str, Any] = {}


def load(path: Path | None, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Config:
    """Read, merge, check; `overrides` come from the command line by section. Raises ConfigError with all problems."""
    document = _read_yaml(path) if path is not None else {}
    merged = _merge(document, overrides or {})
    problems: list[ConfigProblem] = _environment_problems()
    config = Config()
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        problems += [_from_pydantic(e) for e in error.errors(include_url=False)]
    problems += _rule_problems(merged.get("rules"))
    problems += _notifier_problems(merged.get("notify"))
    problems += _serve_problems(merged.get("serve"))
    problems += [ConfigProblem(path=p, message=m) for p, m in secret_problems(merged.get("export"), resolve_secret)]
    if problems:
        raise ConfigError(problems)
    return config


def default_database_url() -> str:
    """Return the SQLite URL in the user's state directory (XDG_STATE_HOME, else ~/.local/state)."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return f"sqlite:///{Path(state) / 'ckptwatch' / 'ckptwatch.db'}"


def resolve_secret(reference: str) -> SecretStr:
    """Return what an `env:NAME` or `file:PATH` reference points to, without surrounding white space.

    Raises ValueError with a message that says what to do and never holds the secret.
    """
    scheme, _, rest = reference.partition(":")
    if scheme == "env":
        value = os.environ.get(rest)
        if not value:
            raise ValueError(f"the environment variable {rest} is not set")
        return SecretStr(value.strip())
    if scheme == "file":
        try:
            with Path(rest).expanduser().open("rb") as stream:
                return SecretStr(stream.read(SECRET_BYTES_MAX).decode().strip())
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the secret file {rest} cannot be read: {error.__class__.__name__}") from None
    raise ValueError("secrets are written as a reference: env:NAME or file:PATH, never as the value itself")


def notifier_config(entry: NotifierEntry, path: str) -> BaseModel:
    """Return a notifier's own configuration with every secret resolved.

    `path` is where the entry stands, for messages. Raises ConfigError with all problems, none of which holds a secret.
    """
    try:
        model = cast("type[BaseModel]", alert_registry.notifier_class(entry.kind).Config)
    except alert_registry.RegistryError as error:
        raise ConfigError([ConfigProblem(path=f"{path}.kind", message=str(error))]) from None
    resolved: dict[str, object] = {}
    problems: list[ConfigProblem] = []
    for key, value in entry.options.items():
        resolved[key] = value
        if value is not None and _holds_secret(model, key):
            try:
                resolved[key] = resolve_secret(str(value))
            except ValueError as error:
                problems.append(ConfigProblem(path=f"{path}.{key}", message=str(error)))
                resolved.pop(key)
    try:
        config = alert_registry.notifier_config(entry.kind, resolved, path=path)
    except alert_registry.OptionsError as error:
        # What is said of a secret, or of the whole because the secret is missing, is said already.
        unresolved = {problem.path for problem in problems} | ({path} if problems else set())
        problems += [p for p in map(_from_line, error.errors) if p.path not in unresolved]
    if problems:
        raise ConfigError(problems)
    return config


def rule_settings(mappings: Mapping[str, Mapping[str, object]], path: str = "rules") -> tuple[RuleSetting, ...]:
    """Return one setting for each rule that `mappings` name; raise ConfigError with all problems."""
    settings: list[RuleSetting] = []
    problems: list[ConfigProblem] = []
    for name, keys in mappings.items():
        try:
            settings.append(alert_registry.rule_setting(name, keys, path=f"{path}.{name}"))
        except alert_registry.OptionsError as error:
            problems += [_from_line(line) for line in error.errors]
        except alert_registry.RegistryError as error:
            problems.append(ConfigProblem(path=f"{path}.{name}", message=str(error)))
    if problems:
        raise ConfigError(problems)
    return tuple(settings)


def _holds_secret(model: type[BaseModel], key: str) -> bool:
    field = next((f for name, f in model.model_fields.items() if key in (name, f.alias)), None)
    return field is not None and "SecretStr" in str(field.annotation)


def _from_line(line: str) -> ConfigProblem:
    path, _, message = line.partition(": ")
    return ConfigProblem(path=path, message=message)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > CONFIG_BYTES_MAX:
            raise ConfigError([ConfigProblem(path="", message=f"{path} is larger than {CONFIG_BYTES_MAX} bytes")])
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError([ConfigProblem(path="", message=f"cannot read {path}: {error.strerror}")]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())[:300]
        raise ConfigError([ConfigProblem(path="", message=f"{path} is not valid YAML: {line}")]) from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError([ConfigProblem(path="", message=f"{path} must hold sections such as `watch:`")])
    return {str(key): {} if value is None else value for key, value in document.items()}


def _merge(document: dict[str, Any], overrides: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Lay the environment over the file and the command line over both, section by section."""
    broken = {key: value for key, value in document.items() if not isinstance(value, dict)}
    sound = {key: value for key, value in document.items() if isinstance(value, dict)}

    class Layered(_Sources):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            del dotenv_settings, file_secret_settings
            environment = _Document(settings_cls, _decoded(env_settings()))
            return init_settings, environment, _Document(settings_cls, sound)

    merged = Layered(**cast("dict[str, Any]", {k: dict(v) for k, v in overrides.items()})).model_dump(
        exclude_unset=True
    )
    return {**merged, **broken}


def _decoded(value: Any) -> Any:
    """Return what a value of the environment means: lists, mappings and null are JSON, anything else stays a text."""
    if isinstance(value, dict):
        return {key: _decoded(item) for key, item in value.items()}
    if isinstance(value, str) and (value.lstrip().startswith(("[", "{")) or value.strip() == "null"):
        try:
            return json.loads(value)
        except ValueError:
            return value  # refused, with its key, where a list or a mapping is wanted
    return value


class _Document(PydanticBaseSettingsSource):
    """A settings source over an already parsed document."""

    def __init__(self, settings_cls: type[BaseSettings], document: dict[str, Any]) -> None:
        super().__init__(settings_cls)
        self._document = document

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return one section of the document."""
        del field
        return self._document.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the whole document."""
        return self._document


def _environment_problems() -> list[ConfigProblem]:
    """Return the variables that look like a key (CKPTWATCH_SECTION__KEY) of a section that there is not."""
    names = sorted(n for n in os.environ if n.startswith(ENVIRONMENT_PREFIX) and "__" in n)
    sections = {name: name.removeprefix(ENVIRONMENT_PREFIX).partition("__")[0].lower() for name in names}
    known = Config.model_fields
    message = f"unknown section; there are {', '.join(known)}"
    return [ConfigProblem(path=name, message=message) for name, section in sections.items() if section not in known]


def _from_pydantic(error: Any) -> ConfigProblem:
    path = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "unknown key"
    return ConfigProblem(path=path, message=message[:1].lower() + message[1:])


def _rule_problems(rules: object) -> list[ConfigProblem]:
    if not isinstance(rules, dict):
        return []
    problems: list[ConfigProblem] = []
    for name, keys in rules.items():
        if name == "overrides":
            problems += _override_problems(keys)
        else:
            problems += _one_rule_problems("rules", name, keys)
    return problems


def _override_problems(overrides: object) -> list[ConfigProblem]:
    if not isinstance(overrides, list):
        return [ConfigProblem(path="rules.overrides", message="must be a list of {runs: PATTERN, rules: {...}}")]
    problems: list[ConfigProblem] = []
    for index, override in enumerate(overrides):
        path = f"rules.overrides.{index}"
        sound = isinstance(override, dict) and set(override) == {"runs", "rules"}
        if not sound or not isinstance(override["runs"], str) or not isinstance(override["rules"], dict):
            problems.append(ConfigProblem(path=path, message="must be {runs: PATTERN, rules: {...}}"))
            continue
        for name, keys in override["rules"].items():
            problems += _one_rule_problems(f"{path}.rules", name, keys)
    return problems


def _one_rule_problems(path: str, name: str, keys: object) -> list[ConfigProblem]:
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys):
        message = "must hold keys such as `enabled: false`"
        return [ConfigProblem(path=f"{path}.{name}", message=message)]
    try:
        rule_settings({name: keys}, path)
    except ConfigError as error:
        return list(error.problems)
    return []


def _notifier_problems(notify: object) -> list[ConfigProblem]:
    entries = notify.get("notifiers") if isinstance(notify, dict) else None
    if not isinstance(entries, list):
        return []
    problems: list[ConfigProblem] = []
    labels: set[str] = set()
    for index, raw in enumerate(entries):
        path = f"notify.notifiers.{index}"
        try:
            entry = NotifierEntry.model_validate(raw)
        except ValidationError:
            continue  # already reported with the whole document
        if entry.label in labels:
            problems.append(ConfigProblem(path=f"{path}.name", message=f"{entry.label!r} is used twice"))
        labels.add(entry.label)
        try:
            notifier_config(entry, path)
        except ConfigError as error:
            problems += error.problems
    return problems


def _serve_problems(section: object) -> list[ConfigProblem]:
    try:
        serve = ServeConfig.model_validate(section or {})
    except ValidationError:
        return []  # already reported with the whole document
    problems: list[ConfigProblem] = []
    for key in ("token", "password"):
        reference = getattr(serve.auth, key)
        if reference is not None:
            try:
                resolve_secret(reference)
            except ValueError as error:
                problems.append(ConfigProblem(path=f"serve.auth.{key}", message=str(error)))
    if (serve.auth.username is None) != (serve.auth.password is None):
        problems.append(ConfigProblem(path="serve.auth", message="username and password belong together"))
    web, found = check_web_config(serve.web_config)
    problems += [ConfigProblem(path="serve.web_config", message=message) for message in found]
    has_login = serve.auth.token is not None or serve.auth.password is not None or web.is_protected
    if serve.enabled and not serve.is_loopback and not has_login and not found:
        problems.append(
            ConfigProblem(
                path="serve.listen",
                message=f"{serve.listen} can be reached from other machines; set serve.auth.token, a password "
                "or serve.web_config with users",
            )
        )
    return problems
