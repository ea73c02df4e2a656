"""The rules of the house that no linter knows: what is banned, how long things may be, who may catch everything."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemons import REPOSITORY

PACKAGES = ("monitor", "alerts", "storage")
FILE_LINES_MAX = 500
BODY_LINES_MAX = 70
PARAMETERS_MAX = 7
SOURCES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
TREES = {path.relative_to(REPOSITORY).as_posix(): ast.parse(path.read_text()) for path in SOURCES}

BANNED_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "mmap"}
BANNED_NAMES = {"eval", "exec", "compile", "__import__"}
BANNED_ATTRIBUTES = {"memmap", "extract", "extractall", "fromfile", "tofile"}
BANNED_CALLS = {"yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "os.system", "os.popen"}
BANNED_CALLS |= {"np.load", "numpy.load", "tempfile.mktemp"}

# Who may catch what nobody foresaw, and why: each names the error, counts or passes it on, and goes on.
SUPERVISORS = {
    "monitor/daemon.py:Daemon.run": "one bad turn must not end the watch",
    "monitor/watch/events.py:EventHints._gather": "a failing receiver of hints must not end them",
    "monitor/measure/worker_main.py:run_task": "whatever went wrong costs this task only",
    "monitor/measure/workers.py:WorkerPool._run": "the future carries whatever it was",
    "alerts/engine.py:_ask": "one broken rule must not silence the others",
    "monitor/read/plugins.py:load_plugins": "code of others may fail in any way when it is imported",
    "monitor/read/plugins.py:claims_of": "a reader of others that fails must not end the scan",
    "alerts/registry.py:_load_entry": "code of others may fail in any way when it is imported",
    "alerts/delivery.py:Delivery._run": "one bad turn must not end a lane",
    "alerts/delivery.py:_call": "one broken notifier must not stop its lane",
    "monitor/protect/protector.py:Protector._run": "one checkpoint that cannot be protected must not end the thread",
    "monitor/show/push/pusher.py:Pusher._attempt": "one failed export must not end the exports",
}

# Functions with more parameters than the rest may have, and why.

# A command's parameters are the options that its user sees.
COMMANDS = "monitor/commands/"

# Migrations are history: each is one list of statements, written once and never changed.
MIGRATIONS = "storage/migrations/versions/"


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield every function with its qualified name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
            yield from functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{prefix}{node.name}.")
        else:
            yield from functions(node, prefix)


def dotted(node: ast.AST) -> str:
    """Return "a.b.c" for an attribute of an attribute of a name, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [node.module or ""]
    return []


def banned(tree: ast.AST) -> Iterator[str]:
    """Yield what a source must not hold, as "line: what"."""
    for node in ast.walk(tree):
        for module in imported(node):
            if module.partition(".")[0] in BANNED_MODULES:
                yield f"{node.lineno}: import of {module}"  # type: ignore[attr-defined]
        if isinstance(node, ast.Name) and node.id in BANNED_NAMES:
            yield f"{node.lineno}: {node.id}"
        if isinstance(node, ast.Attribute):
            if dotted(node) in BANNED_CALLS:
                yield f"{node.lineno}: {dotted(node)}"
            elif node.attr in BANNED_ATTRIBUTES:
                yield f"{node.lineno}: .{node.attr}"


def test_there_is_something_to_check() -> None:
    assert {"monitor/daemon.py", "alerts/engine.py", "storage/writer.py"} <= set(TREES)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from mmap import mmap",
        "import numpy as np\nnp.memmap('x')",
        "import zipfile\nzipfile.ZipFile('x').extractall()",
        "eval('1')",
        "import yaml\nyaml.load('x')",
        "import os.path, marshal",
        "def f():\n    return __import__('os')",
    ],
)
def test_the_search_for_banned_things_finds_them(source: str) -> None:
    assert list(banned(ast.parse(source)))


def test_nothing_is_unpickled_mapped_extracted_or_evaluated() -> None:
    found = [f"{path}:{what}" for path, tree in TREES.items() for what in banned(tree)]
    assert found == []


def test_no_file_is_longer_than_500_lines() -> None:
    lengths = {path: len((REPOSITORY / path).read_text().splitlines()) for path in TREES}
    assert {path: n for path, n in lengths.items() if n > FILE_LINES_MAX} == {}


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def _n_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for index, name in enumerate(names) if not (index == 0 and name in {"self", "cls"})])


def test_no_function_is_longer_than_70_lines_or_takes_more_than_7_parameters() -> None:
    too_long: dict[str, int] = {}
    too_wide: dict[str, int] = {}
    for path, tree in TREES.items():
        for name, function in functions(tree):
            if _body_lines(function) > BODY_LINES_MAX and not path.startswith(MIGRATIONS):
                too_long[f"{path}:{name}"] = _body_lines(function)
            if _n_parameters(function) > PARAMETERS_MAX and not path.startswith(COMMANDS):
                too_wide[f"{path}:{name}"] = _n_parameters(function)
    assert too_long == {}
    assert too_wide == {}


def _broad_excepts(tree: ast.AST) -> Iterator[tuple[str, ast.ExceptHandler]]:
    for name, function in functions(tree):
        inner = {id(node) for _, other in functions(function) for node in ast.walk(other)}
        for node in ast.walk(function):
            if isinstance(node, ast.ExceptHandler) and id(node) not in inner and _is_broad(node):
                yield name, node


def _is_broad(handler: ast.ExceptHandler) -> bool:
    caught = handler.type
    kinds = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(kind is None or dotted(kind) in {"Exception", "BaseException"} for kind in kinds)


def test_only_named_supervisors_catch_everything_and_others_pass_it_on() -> None:
    found = {
        f"{path}:{name}"
        for path, tree in TREES.items()
        for name, handler in _broad_excepts(tree)
        if not (isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None)  # cleans up and passes it on
    }
    assert found == set(SUPERVISORS)


def _module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _own_imports(path: str, modules: set[str]) -> set[str]:
    """Return the modules of ours that one imports when it is imported itself."""
    found: set[str] = set()
    waiting: list[ast.AST] = [TREES[path]]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue  # imported when called
        if isinstance(node, ast.If) and dotted(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            waiting += node.orelse
            continue
        for module in imported(node):
            names = [f"{module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            found |= {name for name in [module, *names] if name in modules}
        waiting += ast.iter_child_nodes(node)
    return found - {_module_name(path)}


def test_no_module_of_ours_imports_itself_over_others() -> None:
    modules = {_module_name(path): path for path in TREES}
    graph = {module: _own_imports(path, set(modules)) for module, path in modules.items()}
    done: set[str] = set()
    while ready := [module for module in graph if module not in done and graph[module] <= done]:
        done.update(ready)
    assert sorted(set(graph) - done) == []


def test_every_module_says_what_it_is_for_and_every_public_thing_has_a_docstring() -> None:
    missing = []
    for path, tree in TREES.items():
        if tree.body and not ast.get_docstring(tree):
            missing.append(path)
        for node in tree.body:
            is_public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if is_public and not ast.get_docstring(node):  # type: ignore[arg-type]
                missing.append(f"{path}:{node.name}")  # type: ignore[attr-defined]
    assert missing == []


def test_the_import_contracts_hold(tmp_path: Path) -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    if not lint_imports.exists():
        pytest.skip("import-linter is not installed")
    checked = subprocess.run(
        [str(lint_imports), "--no-logo", "--cache-dir", str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout[-4000:] + checked.stderr
    assert " 0 broken" in checked.stdout
