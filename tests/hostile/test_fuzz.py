"""The short tier of fuzzing, and the files that fuzzing has found; `make fuzz` runs it for longer."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from monitor.read.directories import DIRECTORY_READERS
from monitor.read.registry import READERS
from tests.hostile.fuzz import fuzz
from tests.hostile.fuzz_reader import chosen
from tests.hostile.mutations import damaged
from tests.hostile.seeds import load, write_all

FORMATS = sorted({*READERS, *DIRECTORY_READERS})
N_INPUTS = 250

pytestmark = pytest.mark.timeout(400)  # the first one waits for real frameworks to write what is damaged


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of valid checkpoints, written once for all processes of the session."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "fuzz_seeds"
    write_all(directory)
    return directory


def test_every_format_has_something_to_be_damaged(seeds: Path) -> None:
    assert sorted(load(seeds)) == FORMATS


@pytest.mark.parametrize("format_name", FORMATS)
def test_damage_gives_values_or_an_error_of_the_tree_and_nothing_else(
    format_name: str, seeds: Path, tmp_path: Path
) -> None:
    campaign = fuzz(seeds, format_name, seed_number=20240229, n_inputs_max=N_INPUTS, directory=tmp_path)
    assert campaign.findings == {}
    assert campaign.n_inputs == N_INPUTS == sum(campaign.kinds.values())
    assert campaign.kinds["ok"] < N_INPUTS, "nothing was refused, so nothing was damaged"


def test_the_same_numbers_give_the_same_damage(seeds: Path) -> None:
    for written in load(seeds).values():
        assert chosen(written, 7, 11) == chosen(written, 7, 11)
        made = [damaged(written[0], written, random.Random(number)) for number in range(30)]
        assert sum(files.items() <= written[0].files.items() for files in made) < 15
