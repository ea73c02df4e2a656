"""`ckptwatch export`: a clean copy of a checkpoint's tensors."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from monitor.commands.console import CommandError, ExitCode, JsonOption, console, print_json, size
from monitor.commands.measuring import checkpoint_at
from monitor.measure.confinement import WorkerLimits
from monitor.measure.workers import PoolOptions, TaskFailedError, WorkerError, WorkerPool
from monitor.write.tasks import TASKS
from storage.records import TensorKind

_SUFFIXES = {".safetensors": "safetensors", ".npz": "npz"}
_PROGRESS_SECONDS = 0.1
_TASK_SECONDS_MAX = 86_400


def export(
    path: Annotated[str, typer.Argument(help="A checkpoint in any format that is read.")],
    to: Annotated[str, typer.Option("--to", metavar="OUT", help="The file to write: OUT.safetensors or OUT.npz.")],
    filters: Annotated[
        list[str] | None, typer.Option("--filter", metavar="GLOB", help="Only tensors of such names; may be repeated.")
    ] = None,
    kinds: Annotated[
        str | None, typer.Option(metavar="KIND,...", help="Only such tensors: parameter, buffer, optimizer, other.")
    ] = None,
    upcast: Annotated[bool, typer.Option("--upcast", help="Widen to float32 what the format cannot hold.")] = False,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out tensors that cannot be read.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file where there is one.")] = False,
    json: JsonOption = False,
) -> None:
    """Write the tensors of a checkpoint to a safetensors or npz file, dtypes kept and nothing executed.

    The file appears under its name only when it is whole. Tensors that share their storage are each written in full.

    Example: ckptwatch export last.ckpt --to weights.safetensors --kinds parameter,buffer
    """
    target = os.path.abspath(to)
    source = checkpoint_at(path)
    format_name = _format_of(target)
    _check(source, target, force=force)
    payload = {
        "path": source,
        "format": format_name,
        "filters": filters or [],
        "kinds": _kinds(kinds),
        "upcast": upcast,
        "skip_unreadable": skip_unreadable,
    }
    plan = _planned(_ask(path, "plan", payload, file_bytes_max=0, on_wait=None))
    free = shutil.disk_usage(os.path.dirname(target)).free
    if plan["size_bytes_max"] > free:
        raise CommandError(f"{to} needs {size(plan['size_bytes_max'])}, {size(free)} are free", ExitCode.ENVIRONMENT)
    with _temporary(target) as temporary:
        with _progress(temporary, plan["size_bytes_max"], disable=json) as on_wait:
            written = _ask(
                path,
                "write",
                payload | {"target": temporary},
                file_bytes_max=plan["size_bytes_max"],
                on_wait=on_wait,
            )
        if not isinstance(written, dict) or written.get("write_error") is not None:
            why = written.get("write_error") if isinstance(written, dict) else "the worker's answer is none"
            raise CommandError(f"{to} cannot be written: {why}", ExitCode.ENVIRONMENT)
        _give_name(temporary, target, force=force)
    n_bytes = os.path.getsize(target)
    if json:
        print_json({"path": path, "to": to, "format": format_name, "size_bytes": n_bytes} | _told(plan))
        return
    for name in plan["left_out"]:
        console(stderr=True).print(f"left out, since it cannot be read: {name}", markup=False)
    console().print(f"{to}: {plan['n_tensors']} tensors, {size(n_bytes)}", markup=False)


def _told(plan: dict[str, Any]) -> dict[str, Any]:
    return {"n_tensors": plan["n_tensors"], "left_out": plan["left_out"]}


def _format_of(target: str) -> str:
    found = _SUFFIXES.get(os.path.splitext(target)[1])
    if found is None:
        raise CommandError(f"{target}: the name must end in .safetensors or .npz", ExitCode.USAGE)
    return found


def _kinds(text: str | None) -> list[str]:
    wanted = list(TensorKind) if text is None else [part.strip() for part in text.split(",")]
    for kind in wanted:
        if kind not in set(TensorKind):
            known = ", ".join(TensorKind)
            raise CommandError(f"there is no kind of tensors called {kind!r}; there are {known}", ExitCode.USAGE)
    return [str(kind) for kind in wanted]


def _check(source: str, target: str, *, force: bool) -> None:
    if not os.path.lexists(source):
        raise CommandError(f"there is no file {source}", ExitCode.UNREADABLE)
    if not os.path.isdir(os.path.dirname(target)):
        raise CommandError(f"there is no directory {os.path.dirname(target)}", ExitCode.USAGE)
    if os.path.isdir(target):
        raise CommandError(f"{target} is a directory", ExitCode.USAGE)
    if os.path.lexists(target):
        if os.path.exists(target) and os.path.samefile(source, target):
            raise CommandError(f"{target} is the checkpoint itself", ExitCode.USAGE)
        if not force:
            raise _exists(target)


def _exists(target: str) -> CommandError:
    return CommandError(f"{target} is there already; --force replaces it", ExitCode.USAGE)


def _ask(
    path: str,
    task: str,
    payload: dict[str, Any],
    *,
    file_bytes_max: int,
    on_wait: Callable[[], None] | None,
) -> Any:
    """Run one task in a worker of its own that may write no more than `file_bytes_max` to any file."""
    limits = WorkerLimits(file_bytes_max=file_bytes_max, cpu_seconds_max=_TASK_SECONDS_MAX)
    options = PoolOptions(n_workers=1, limits=limits, task_timeout_seconds=_TASK_SECONDS_MAX)
    with WorkerPool(options, tasks=TASKS) as pool:
        future: Future[Any] = pool.submit(task, payload)
        while on_wait is not None and not wait_for([future], timeout=_PROGRESS_SECONDS).done:
            on_wait()
        try:
            return future.result()
        except TaskFailedError as error:
            raise CommandError(f"{path}: {error.problem.kind}: {error.problem.message}", ExitCode.UNREADABLE) from error
        except WorkerError as error:
            raise CommandError(f"{path}: {error.problem.message}", ExitCode.UNREADABLE) from error


def _planned(answer: Any) -> dict[str, Any]:
    """Return the plan, checked: it came from a process that read the file."""
    if isinstance(answer, dict) and set(answer) == {"n_tensors", "size_bytes_max", "left_out"}:
        numbers_ok = all(type(answer[key]) is int and answer[key] >= 0 for key in ("n_tensors", "size_bytes_max"))
        names = answer["left_out"]
        if numbers_ok and isinstance(names, list) and all(isinstance(n, str) and n.isprintable() for n in names):
            return answer
    raise CommandError("the worker's plan makes no sense", ExitCode.UNREADABLE)


@contextlib.contextmanager
def _temporary(target: str) -> Iterator[str]:
    """Make an empty file beside the target under a name that no watcher takes for a checkpoint; remove what is left."""
    directory, name = os.path.split(target)
    temporary = os.path.join(directory, f".{name}.{secrets.token_hex(4)}.tmp")
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    except OSError as error:
        raise CommandError(f"{target} cannot be written: {error.strerror}", ExitCode.ENVIRONMENT) from error
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _give_name(temporary: str, target: str, *, force: bool) -> None:
    """Let the whole file appear under its name, in one step, and replace nothing unless told so."""
    try:
        if force:
            os.replace(temporary, target)
            return
        try:
            os.link(temporary, target)
        except FileExistsError:
            raise _exists(target) from None
        except OSError:  # a file system without hard links
            if os.path.lexists(target):
                raise _exists(target) from None
            os.rename(temporary, target)
    except OSError as error:
        raise CommandError(f"{target} cannot be written: {error.strerror}", ExitCode.ENVIRONMENT) from error


@contextlib.contextmanager
def _progress(temporary: str, total_bytes: int, *, disable: bool) -> Iterator[Callable[[], None]]:
    """Show how much is written, and how fast, on standard error; yields what is to be called now and then."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=console(stderr=True), disable=disable, transient=True) as progress:
        task = progress.add_task("writing", total=total_bytes)

        def on_wait() -> None:
            with contextlib.suppress(OSError):
                progress.update(task, completed=Path(temporary).stat().st_size)

        yield on_wait
