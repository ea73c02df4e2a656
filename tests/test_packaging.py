"""The wheel: three packages with their data and nothing else, at work in an environment that holds no framework."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.daemons import REPOSITORY, DaemonProcess, clean_environment, wait_for

pytestmark = pytest.mark.timeout(600)

PACKAGES = ("alerts", "monitor", "storage")
FRAMEWORKS = ("torch", "tensorflow", "keras", "jax", "sklearn")
HIDE_FRAMEWORKS = f"""
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FRAMEWORKS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
"""


def _run(*arguments: object, environment: Mapping[str, str] | None = None) -> str:
    ended = subprocess.run(
        [*map(str, arguments)], env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert ended.returncode == 0, f"{arguments}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build", reason="the build tools are not installed")
    directory = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", directory, REPOSITORY)
    (built,) = directory.glob("*.whl")
    return built


def test_the_wheel_holds_the_three_packages_whole_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    packed = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    sources = {
        path.relative_to(REPOSITORY).as_posix()
        for package in PACKAGES
        for path in (REPOSITORY / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert packed == sources
    assert {f"{package}/py.typed" for package in PACKAGES} <= packed
    for data in ("templates/layout.html", "static/style.css", "static/htmx.min.js", "static/VENDORED.md"):
        assert f"monitor/show/web/{data}" in packed
    assert any(name.startswith("storage/migrations/versions/") for name in packed)
    metadata = names - packed
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in metadata)
    entry_points = next(name for name in metadata if name.endswith("entry_points.txt"))
    assert b"ckptwatch = monitor.cli:main" in zipfile.ZipFile(wheel).read(entry_points)


def _create_environment(directory: Path) -> Path:
    """Create a virtual environment without anything in it and return its Python."""
    _run(sys.executable, "-m", "venv", "--without-pip", directory)
    return directory / "bin" / "python"


def _install(python: Path, *arguments: object) -> None:
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-input", *arguments)


def _check_at_work(python: Path, tmp_path: Path) -> None:
    """Ask the installed program for its version, for a file's tensors, and to watch a directory."""
    environment = clean_environment()
    del environment["PYTHONPATH"]
    program = python.with_name("ckptwatch")

    def ask(*arguments: object) -> str:
        return _run(program, *arguments, environment=environment)

    where = _run(python, "-I", "-c", "import monitor; print(monitor.__file__)", environment=environment)
    assert Path(where.strip()).is_relative_to(python.parents[1]), "this is not what was installed"
    for framework in FRAMEWORKS:
        probe = [str(python), "-I", "-c", f"import {framework}"]
        assert subprocess.run(probe, env=environment, capture_output=True, check=False).returncode != 0, framework
    assert ask("--version").startswith("ckptwatch ")
    root = tmp_path / "run"
    root.mkdir()
    torch.save({"model": {"w": torch.full((3, 4), 2.0)}, "step": 5}, root / "step-5.pt")
    document = json.loads(ask("inspect", root / "step-5.pt", "--json"))
    assert [(t["name"], t["mean"], t["n_elements"]) for t in document["tensors"]] == [("w", 2.0, 12)]
    daemon = DaemonProcess(tmp_path / "state", root)
    daemon.program, daemon.environment = [str(program)], environment
    with daemon:
        wait_for("the checkpoint", daemon.snapshots)
        np.save(root / "step-6.npy", np.ones(3))
        wait_for("the next one", lambda: len(daemon.snapshots()) == 2)
        assert [snapshot["status"] for snapshot in daemon.snapshots()] == ["complete", "complete"]
        status, page = daemon.get("/")
        assert status == 200
        assert "step" in page
        assert "ckptwatch_build_info" in daemon.get("/metrics")[1]
        maps = Path(f"/proc/{daemon.pid}/maps")
        if maps.exists():
            assert "libtorch" not in maps.read_text()
        assert daemon.terminate() == 0


def test_the_installed_wheel_works_where_no_framework_can_be_imported(wheel: Path, tmp_path: Path) -> None:
    python = _create_environment(tmp_path / "environment")
    _install(python, "--no-index", "--no-deps", wheel)
    # The dependencies are lent from the environment of the tests; of it the frameworks are hidden.
    (site,) = (tmp_path / "environment" / "lib").glob("python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n" + sysconfig.get_path("platlib") + "\n")
    (site / "sitecustomize.py").write_text(HIDE_FRAMEWORKS)
    _check_at_work(python, tmp_path)


@pytest.mark.slow
def test_the_wheel_and_its_own_dependencies_are_all_that_is_needed(wheel: Path, tmp_path: Path) -> None:
    python = _create_environment(tmp_path / "environment")
    _install(python, "-c", REPOSITORY / "constraints.txt", wheel)
    _check_at_work(python, tmp_path)
    listed = _run(sys.executable, "-m", "pip", "--python", python, "list", "--format", "json")
    installed = {package["name"].lower() for package in json.loads(listed)}
    assert "ckptwatch" in installed
    assert installed.isdisjoint({*FRAMEWORKS, "scikit-learn", "scipy", "pandas", "pytest"})
