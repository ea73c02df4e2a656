"""Which formats a test file proves, and with whose writers: read from its source, so that nothing has to be imported.

A format is proven where a conformance suite is subclassed for it, or where an assertion says what a file was opened as.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
_SUITES = ("ReaderConformance", "UnitConformance")


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def formats_proven(test: Path) -> frozenset[str]:
    """Return the names of formats of which a test file says that files were opened as such."""
    found: set[str] = set()
    suites = set(_SUITES)
    for node in ast.walk(_tree(test)):
        if isinstance(node, ast.ClassDef) and any(isinstance(b, ast.Name) and b.id in suites for b in node.bases):
            suites.add(node.name)
            found |= {text for part in node.body if _assigns_format(part) for text in _texts(part)}
        elif isinstance(node, ast.Assert) and any(
            isinstance(part, ast.Attribute) and part.attr == "format" for part in ast.walk(node)
        ):
            found |= _texts(node)
    return frozenset(found)


def _assigns_format(part: ast.stmt) -> bool:
    targets = part.targets if isinstance(part, ast.Assign) else [part.target] if isinstance(part, ast.AnnAssign) else []
    return any(isinstance(target, ast.Name) and target.id == "format" for target in targets)


def _texts(node: ast.AST) -> set[str]:
    return {p.value for p in ast.walk(node) if isinstance(p, ast.Constant) and isinstance(p.value, str)}


def packages_used(test: Path) -> frozenset[str]:
    """Return the top-level packages that a test file imports, and its fixtures, and the support modules that both use.

    A support module is used where it is imported, or run as a program, by its name or its path.
    """
    conftest = test.with_name("conftest.py")
    parts: list[ast.AST] = [_tree(test)]
    asked_for = {node.arg for node in ast.walk(parts[0]) if isinstance(node, ast.arg)} | _texts(parts[0])
    for fixture in _tree(conftest).body if conftest.exists() else ():
        if isinstance(fixture, ast.FunctionDef) and fixture.name in asked_for:
            parts.append(fixture)
    seen: set[Path] = set()
    found: set[str] = set()
    while parts:
        for name in _imported(parts.pop()):
            found.add(name.partition(".")[0])
            path = ROOT / f"{name.replace('.', '/')}.py"
            if name.startswith("tests.support.") and path.exists() and path not in seen:
                seen.add(path)
                parts.append(_tree(path))
    return frozenset(found)


def _imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("tests.support."):
            names.add(node.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(".py"):
            names.add(f"tests.support.{node.value.removesuffix('.py')}")
    return names
