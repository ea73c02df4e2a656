"""The parts of docs/formats.md that the readers themselves say: a table of all formats, and a section for each.

Pure text; `make docs` puts it into the page, and a test holds the page to it.
"""

from __future__ import annotations

from collections.abc import Mapping

from monitor.read.directories import DIRECTORY_READERS, directory_reader
from monitor.read.notes import FormatNotes
from monitor.read.registry import READERS, reader_class


def built_in_notes() -> dict[str, FormatNotes]:
    """Return the notes of every built-in format, single files first, each sorted by name.

    Raises TypeError for a reader without any.
    """
    classes: dict[str, type[object]] = {name: reader_class(name) for name in sorted(READERS)}
    classes |= {name: directory_reader(name) for name in sorted(DIRECTORY_READERS)}
    found: dict[str, FormatNotes] = {}
    for name, reader in classes.items():
        notes = getattr(reader, "notes", None)
        if not isinstance(notes, FormatNotes):
            raise TypeError(f"the reader of {name} says nothing of its format: give it `notes`")
        found[name] = notes
    return found


def format_table(notes: Mapping[str, FormatNotes]) -> str:
    """Return a table in Markdown with a row for each format."""
    rows = ["| format | files | written by | optimizer state |", "|---|---|---|---|"]
    rows += [f"| `{name}` | {n.files} | {n.written_by} | {n.optimizer_state} |" for name, n in notes.items()]
    return "\n".join(rows) + "\n"


def format_sections(notes: Mapping[str, FormatNotes]) -> str:
    """Return a section in Markdown for each format: when it is whole, what is read of it, how, and what proves it."""
    return "\n\n".join(_section(name, n) for name, n in notes.items()) + "\n"


def _section(name: str, notes: FormatNotes) -> str:
    writer = notes.tested_with.removesuffix("-cpu")
    written = f"files that {writer} writes"
    if notes.layout_of:
        written = f"files of the layout of {notes.layout_of}, written with {writer} after its source"
    points = {
        "Whole when": notes.whole,
        "Not whole yet": notes.not_yet,
        "Never whole": notes.never,
        "Step": notes.step,
        "Read safely": notes.safety,
        "Limits": "; ".join(notes.limits),
        "Tested": f"`{notes.tested_in}`, on {written}",
    }
    lines = [f"- {title}: {text}." for title, text in points.items() if text]
    return f"### `{name}`\n\n" + "\n".join(lines)
