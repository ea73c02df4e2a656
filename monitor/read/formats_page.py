"""The parts of docs/formats.md that the readers themselves say, made anew; what people wrote around them stays.

Pure text. A part lies between `<!-- NAME: made from the readers -->` and `<!-- end of NAME -->`. A test holds the page
to what this makes, and `make golden` writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from monitor.read.directories import DIRECTORY_READERS, directory_reader
from monitor.read.notes import FormatNotes
from monitor.read.registry import READERS, reader_class

_BEGIN, _END = "<!-- {}: made from the readers -->\n", "<!-- end of {} -->"


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


def renewed(page: str, notes: Mapping[str, FormatNotes]) -> str:
    """Return the page with its parts made from `notes`; raise ValueError where the page has no place for one."""
    for name, make in _PARTS.items():
        begin, end = _BEGIN.format(name), _END.format(name)
        before, found_begin, rest = page.partition(begin)
        _, found_end, after = rest.partition(end)
        if not found_begin or not found_end:
            raise ValueError(f"the page has no place for its part '{name}': {begin.strip()} ... {end}")
        page = f"{before}{begin}\n{make(notes)}\n\n{end}{after}"
    return page


def _table(notes: Mapping[str, FormatNotes]) -> str:
    rows = ["| format | files | written by | optimizer state |", "|---|---|---|---|"]
    rows += [f"| `{name}` | {n.files} | {n.written_by} | {n.optimizer_state} |" for name, n in notes.items()]
    return "\n".join(rows)


def _details(notes: Mapping[str, FormatNotes]) -> str:
    return "\n\n".join(_section(name, n) for name, n in notes.items())


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


_PARTS: dict[str, Callable[[Mapping[str, FormatNotes]], str]] = {"formats": _table, "format by format": _details}
