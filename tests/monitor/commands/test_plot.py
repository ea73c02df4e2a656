"""`plot`: pictures of runs and checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from tests.monitor.commands.conftest import Cli, Stored


def colours(path: Path) -> int:
    """Return how many different colours a picture has: an empty one has very few."""
    pixels = (image.imread(path)[..., :3] * 255).astype(np.uint8).reshape(-1, 3)
    return len(np.unique(pixels, axis=0))


@pytest.mark.parametrize("kind", ["timeline", "heatmap", "map"])
def test_every_kind_of_picture_of_a_run_is_drawn(cli: Cli, stored: Stored, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"{kind}.png"
    ended = cli("plot", "runs/bad", "--kind", kind, "-o", file, "--db", stored.database)
    assert (ended.code, ended.out) == (0, ""), ended.err
    assert colours(file) > 20


def test_the_ridgeline_of_a_tensor_is_drawn_as_svg_with_its_name(cli: Cli, stored: Stored, tmp_path: Path) -> None:
    file = tmp_path / "ridge.svg"
    options = ("--kind", "ridgeline", "--tensor", "layers.0.weight", "--db", stored.database)
    ended = cli("plot", "runs/good", "-o", file, *options)
    assert ended.code == 0, ended.err
    assert "<svg" in file.read_text()
    assert "layers.0.weight" in file.read_text()


def test_a_path_gives_the_distributions_of_its_tensors(cli: Cli, stored: Stored, tmp_path: Path) -> None:
    file = tmp_path / "one.png"
    assert cli("plot", stored.root / "good" / "step-10.npz", "-o", file).code == 0
    assert colours(file) > 20


def test_what_cannot_be_drawn_says_why_and_writes_nothing(cli: Cli, stored: Stored, tmp_path: Path) -> None:
    old = tmp_path / "old.png"
    old.write_text("precious")
    asked = {
        ("runs/none", "-o", tmp_path / "a.png"): (2, "no run"),
        ("runs/good", "-o", tmp_path / "a.gif"): (2, ".png"),
        ("runs/good", "-o", old): (2, "--force"),
        ("runs/good", "-o", tmp_path / "none" / "a.png"): (4, "cannot write"),
        ("runs/good", "-o", tmp_path / "a.png", "--kind", "ridgeline"): (2, "--tensor"),
        ("runs/good", "-o", tmp_path / "a.png", "--kind", "ridgeline", "--tensor", "x"): (2, "no tensor"),
        ("runs/broken", "-o", tmp_path / "a.png"): (1, "fewer than two"),
        (stored.root / "broken" / "step-1.npz", "-o", tmp_path / "a.png"): (3, "step-1.npz"),
    }
    for arguments, (code, said) in asked.items():
        ended = cli("plot", *arguments, "--db", stored.database)
        assert (ended.code, ended.err.count("\n")) == (code, 1), (arguments, ended.err)
        assert said in ended.err
    assert old.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir() if path.suffix in {".png", ".gif"}] == ["old.png"]


def test_inspect_draws_beside_its_table(cli: Cli, stored: Stored, tmp_path: Path) -> None:
    file = tmp_path / "beside.png"
    ended = cli("inspect", stored.root / "good" / "step-10.npz", "--plot", file)
    assert ended.code == 0
    assert "layers.0.weight" in ended.out
    assert colours(file) > 20
