from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from monitor.measure import compile_cache
from monitor.measure.compile_cache import compile_cache_directory, usable

HOME = Path("/home/ada")


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({}, "linux", "/home/ada/.cache/ckptwatch/kernels"),
        ({"XDG_CACHE_HOME": "/cache"}, "linux", "/cache/ckptwatch/kernels"),
        ({"XDG_CACHE_HOME": "relative"}, "linux", "/home/ada/.cache/ckptwatch/kernels"),
        ({}, "darwin", "/home/ada/Library/Caches/ckptwatch/kernels"),
        ({"CKPTWATCH_COMPILE_CACHE": "/elsewhere"}, "linux", "/elsewhere"),
    ],
)
def test_kernels_are_kept_where_the_platform_keeps_caches(
    environment: dict[str, str], platform: str, expected: str
) -> None:
    assert compile_cache_directory(environment, platform, HOME) == Path(expected)


def test_a_cache_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    assert usable(target)
    assert target.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_cache_that_others_may_write_is_not_used(tmp_path: Path, mode: int) -> None:
    target = tmp_path / "cache"
    target.mkdir()
    target.chmod(mode)
    assert not usable(target)


def test_a_cache_that_cannot_be_made_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not usable(tmp_path / "file" / "cache")


@pytest.mark.parametrize("cache", ["made", "impossible"])
def test_measuring_works_with_and_without_a_cache(tmp_path: Path, cache: str) -> None:
    (tmp_path / "impossible").write_text("a file where the directory should be")
    script = (
        "import numpy as np\n"
        "from monitor.measure.exact_drift import ExactDrift\n"
        "d = ExactDrift(3); d.update(np.ones(3), np.zeros(3)); print(d.finish('w', None).difference_l2)"
    )
    environment = {**os.environ, "CKPTWATCH_COMPILE_CACHE": str(tmp_path / cache)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert float(done.stdout) == pytest.approx(3**0.5)
    kept = list((tmp_path / cache).rglob("*.nbc")) if cache == "made" else []
    assert bool(kept) == (cache == "made")


def test_code_compiled_for_another_processor_is_never_loaded_and_nothing_is_kept_beside_the_sources(
    tmp_path: Path,
) -> None:
    script = (
        "import numpy as np\n"
        "from monitor.measure import kernel\n"
        "from monitor.measure.exact_drift import ExactDrift\n"
        "d = ExactDrift(3); d.update(np.ones(3), np.zeros(3)); d.finish('w', None)\n"
        "stats = kernel.compare64.stats\n"
        "print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))"
    )

    def hits_and_misses(**more: str) -> list[int]:
        environment = {**os.environ, "CKPTWATCH_COMPILE_CACHE": str(tmp_path), **more}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return [int(number) for number in done.stdout.split()]

    assert hits_and_misses() == [0, 1]
    assert hits_and_misses() == [1, 0]
    assert hits_and_misses(NUMBA_CPU_NAME="generic") == [0, 1]
    assert hits_and_misses() == [1, 0]
    assert list(tmp_path.rglob("*.nbc"))
    assert not list(Path(compile_cache.__file__).parent.rglob("*.nbc"))
