"""docs/formats.md says what the readers say, and each thing that it says of a format is proven by a test."""

from __future__ import annotations

import dataclasses
from functools import cache
from importlib.metadata import packages_distributions

import pytest

from monitor.read.directories import DIRECTORY_READERS
from monitor.read.formats_page import built_in_notes, format_sections, format_table
from monitor.read.registry import READERS
from tests.conformance.coverage import ROOT, formats_proven, packages_used

FORMATS = sorted([*READERS, *DIRECTORY_READERS])

distributions = cache(packages_distributions)


def test_every_format_has_notes_and_there_are_none_of_others() -> None:
    notes = built_in_notes()
    assert sorted(notes) == FORMATS
    for name, said in notes.items():
        for field in dataclasses.fields(said):
            texts = getattr(said, field.name)
            for text in (texts,) if isinstance(texts, str) else texts:
                assert text or field.name == "layout_of", f"{name} says nothing of {field.name}"
                assert "\n" not in text
                assert text == text.strip()
                assert not text.endswith(".") or text.endswith("...")


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_on_the_page_is_proven_by_the_test_that_it_names_with_its_real_writer(name: str) -> None:
    notes = built_in_notes()[name]
    test = ROOT / notes.tested_in
    assert test.is_file(), f"{notes.tested_in} is not there"
    assert name in formats_proven(test), f"{notes.tested_in} never says that a file was opened as {name}"
    writers = {d.lower().replace("_", "-") for package in packages_used(test) for d in distributions().get(package, [])}
    assert notes.tested_with in writers, f"{notes.tested_in} uses {sorted(writers)}, not {notes.tested_with}"


@pytest.mark.parametrize("name", [n for n in FORMATS if built_in_notes()[n].layout_of])
def test_what_imitates_a_writer_says_whose_source_it_follows(name: str) -> None:
    notes = built_in_notes()[name]
    support = (ROOT / "tests" / "support" / f"{name}_writer.py").read_text()
    product, _, version = notes.layout_of.rpartition(" ")
    assert "follows the source" in support
    assert product.partition(" ")[0] in support
    assert version in support


def test_each_format_has_a_row_and_a_section_of_what_its_reader_says() -> None:
    notes = built_in_notes()
    table, sections = format_table(notes), format_sections(notes)
    for name, said in notes.items():
        assert f"| `{name}` | {said.files} | {said.written_by} |" in table
        section = sections.partition(f"### `{name}`\n")[2].partition("### ")[0]
        assert f"- Whole when: {said.whole}.\n" in section
        assert said.tested_in in section
