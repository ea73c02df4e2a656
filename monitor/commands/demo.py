"""`ckptwatch demo`: a small real training run that goes wrong on purpose, watched live."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from monitor.backlog import Retried
from monitor.commands.console import CommandError, ExitCode, console, number, set_up_logging, table
from monitor.commands.environment import environment_errors
from monitor.config import Config, ServeConfig, load
from monitor.daemon import Daemon
from monitor.pipeline import Recorded
from monitor.show.web.server import ServeError
from storage.records import Finding, Severity, Snapshot

ROWS_SHOWN = 18
TRAINING_SECONDS_MAX = 600.0


@dataclass(slots=True)
class Story:
    """What the daemon told so far."""

    snapshots: list[Snapshot] = field(default_factory=list)
    findings: dict[str, Finding] = field(default_factory=dict)  # the first of each rule
    by_step: dict[int | None, list[Finding]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, event: Recorded | Retried) -> None:
        """Take in one event; called from the daemon's thread."""
        if not isinstance(event, Recorded):
            return
        with self.lock:
            self.snapshots.append(event.snapshot)
            for finding in event.outcome.findings:
                self.findings.setdefault(finding.rule, finding)
                self.by_step.setdefault(event.snapshot.checkpoint.step, []).append(finding)


def demo(
    exit_: Annotated[bool, typer.Option("--exit", help="End when the training has ended.")] = False,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to serve the page.")] = "127.0.0.1:10470",
    pause_seconds: Annotated[float, typer.Option(min=0, max=10, help="Pause after each training step.")] = 0.02,
) -> None:
    """Train a small model whose learning rate goes wrong after step 200, and watch what ckptwatch makes of it.

    Without a terminal it ends by itself, like with --exit. Example: ckptwatch demo
    """
    set_up_logging(quiet=True)
    out = console()
    waits = not exit_ and out.is_terminal
    directory = Path(tempfile.mkdtemp(prefix="ckptwatch-demo-"))
    story = Story()
    try:
        with environment_errors(), _daemon(directory, listen, story) as daemon:
            module = "train_torch" if importlib.util.find_spec("torch") else "train_numpy"
            out.print(f"The page: {daemon.url}    Prometheus: {daemon.url}/metrics")
            out.print(
                f"The trainer: {'PyTorch' if module == 'train_torch' else 'NumPy'}, saving to {directory / 'run'}"
            )
            try:
                _train_and_show(module, directory / "run", pause_seconds, daemon, story, live=out.is_terminal)
                _summarise(story, daemon)
                if waits:
                    out.print(f"\n{daemon.url} stays open; Ctrl-C ends it.")
                    threading.Event().wait()
            except KeyboardInterrupt:
                out.print("stopped")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _daemon(directory: Path, listen: str, story: Story) -> Iterator[Daemon]:
    """Run a daemon beside the training, on another port when the usual one is taken."""
    (directory / "run").mkdir()

    def build(address: str) -> Daemon:
        serve = ServeConfig(listen=address)
        settings: Config = load(
            None,
            {
                "watch": {"roots": [str(directory / "run")], "settle_seconds": 0.3},
                "storage": {"url": f"sqlite:///{directory / 'demo.db'}"},
                "serve": serve.model_dump(),
            },
        )
        return Daemon(settings, on_event=story.add)

    daemon = build(listen)
    try:
        daemon.start()
    except ServeError as error:
        daemon.close()
        if error.kind != "port_in_use":
            raise
        daemon = build("127.0.0.1:0")
        daemon.start()
    thread = threading.Thread(target=daemon.run, name="ckptwatch-demo", daemon=True)
    thread.start()
    try:
        yield daemon
    finally:
        daemon.stop()
        thread.join(10.0)
        daemon.close()


def _train_and_show(module: str, run: Path, pause_seconds: float, daemon: Daemon, story: Story, *, live: bool) -> None:
    own = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([own, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", f"monitor.demo.{module}", str(run), "--pause-seconds", str(pause_seconds)]
    with subprocess.Popen(  # noqa: S603 (our own interpreter and module)
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as trainer:
        try:
            if live:
                with Live(_view(story), console=console(), refresh_per_second=8) as display:
                    _follow(trainer, run, daemon, lambda: display.update(_view(story)))
            else:
                _follow(trainer, run, daemon, lambda: None)
        finally:
            if trainer.poll() is None:
                trainer.terminate()
        if trainer.returncode:
            assert trainer.stderr is not None
            last = (trainer.stderr.read().strip().splitlines() or ["no message"])[-1]
            raise CommandError(f"the demo's trainer failed: {last[:300]}", ExitCode.ENVIRONMENT)
    if not live:
        console().print(_view(story, rows_max=1000))


def _follow(trainer: subprocess.Popen[str], run: Path, daemon: Daemon, refresh: Callable[[], None]) -> None:
    """Return when the trainer has ended and every checkpoint that it left is stored."""
    deadline = time.monotonic() + TRAINING_SECONDS_MAX
    while time.monotonic() < deadline:
        refresh()
        if trainer.poll() is not None and len(daemon.views.history("run", 10_000) or ()) >= len(list(run.iterdir())):
            refresh()
            return
        time.sleep(0.1)
    raise CommandError(f"the demo did not end within {TRAINING_SECONDS_MAX:.0f} s", ExitCode.ENVIRONMENT)


def _view(story: Story, rows_max: int = ROWS_SHOWN) -> Group:
    columns = [("step", "right"), ("weight norm", "right"), ("change/step", "right"), ("gradient norm", "right")]
    columns += [("NaN/Inf", "right"), ("", "left")]
    with story.lock:
        shown = story.snapshots[-rows_max:]
        by_step = {step: list(findings) for step, findings in story.by_step.items()}
        first = list(story.findings.values())
    built = table(None, columns, [])
    for snapshot in shown:
        findings = by_step.get(snapshot.checkpoint.step, [])
        style = "bold red" if any(f.severity >= Severity.CRITICAL for f in findings) else ""
        cells = [
            str(snapshot.checkpoint.step),
            number(snapshot.weight_norm),
            number(snapshot.update_ratio, 3),
            number(snapshot.gradient.norm if snapshot.gradient else None),
            f"{snapshot.n_nonfinite:,}" if snapshot.n_nonfinite else "",
            ", ".join(f.rule for f in findings) or "ok",
        ]
        built.add_row(*(Text(cell, style=style) for cell in cells))
    lines = [Text(f"step {f.step}  {f.severity.label}: {f.summary}", style="red") for f in first]
    return Group(Text(""), built, Text(""), *lines)


def _summarise(story: Story, daemon: Daemon) -> None:
    critical = [f for f in story.findings.values() if f.severity >= Severity.CRITICAL and f.step is not None]
    bad = next((s for s in story.snapshots if s.first_bad_tensor is not None), None)
    view = daemon.views.view("run")
    good = view.last_good if view else None
    if not critical or bad is None or good is None:
        raise CommandError("the demo did not go wrong as it should have; please report this", ExitCode.BAD_NEWS)
    out = console()
    out.print()
    out.print(f"Checkpoints measured   {len(story.snapshots)}")
    first_step = min(f.step for f in critical if f.step is not None)
    rules = ", ".join(sorted(f.rule for f in critical if f.step == first_step))
    out.print(f"First bad step         {first_step}  ({rules})")
    out.print(f"First bad tensor       {bad.first_bad_tensor}  (NaN or infinity since step {bad.checkpoint.step})")
    out.print(f"Last good checkpoint   step {good.step}  {good.path}")
