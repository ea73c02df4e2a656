"""The committed pages are what the generator writes."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load()


@pytest.mark.parametrize("name", ["alerts.md", "formats.md", "metrics.md"])
def test_a_generated_page_is_up_to_date(name: str) -> None:
    committed = (DOCS / name).read_text()
    assert DOCS / name in generate.pages()
    assert committed == generate.generated(committed), "write it anew with: make docs"


def test_every_generated_part_is_on_a_page_once() -> None:
    found = [match[2] for page in generate.pages() for match in generate.BLOCK.finditer(page.read_text())]
    assert sorted(found) == sorted(generate.BLOCKS)


def test_a_number_that_changes_in_the_code_changes_the_page() -> None:
    committed = (DOCS / "alerts.md").read_text()
    stale = re.sub(r"(\| `gradient_explosion` \| `factor` \| )`10`", r"\1`11`", committed)
    assert stale != committed
    assert generate.generated(stale) == committed
