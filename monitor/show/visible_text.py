"""Make text that a file or a path chose safe to look at: nothing invisible, nothing that turns the line around.

Names of runs, tensors and files come from outside. Escaping HTML is the template's work; this module only takes
care of characters that cannot be seen or that change how their neighbours are shown.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable

LABEL_CHARACTERS_MAX = 200  # a label value longer than this makes a scrape, not a reader, happy

# Control (Cc), format such as bidi overrides and zero-width (Cf), surrogate (Cs), private use (Co), unassigned (Cn),
# line and paragraph separators (Zl, Zp).
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def visible(text: str) -> str:
    """Return `text` with every control, bidi, zero-width and surrogate character written as an escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if unicodedata.category(c) in _HIDDEN_CATEGORIES else c for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def shortened(text: str, characters_max: int) -> str:
    """Return `text`, or its head and tail around an ellipsis, at most `characters_max` (at least 8) characters."""
    if len(text) <= characters_max:
        return text
    n_tail = (characters_max - 1) // 2
    return f"{text[: characters_max - 1 - n_tail]}…{text[len(text) - n_tail :]}"


def unique_labels(names: Iterable[str]) -> dict[str, str]:
    """Map each name to a visible label value of at most LABEL_CHARACTERS_MAX characters, no two alike.

    Two series with equal labels fail a whole scrape, so a name whose label is cut, or already taken, gets a short
    hash of the name itself: the label stays the same from scrape to scrape, whatever else is in the database.
    """
    labels: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        if name in labels:
            continue
        label = visible(name)
        if len(label) > LABEL_CHARACTERS_MAX or label in taken:
            digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
            label = f"{label[: LABEL_CHARACTERS_MAX - 13]}~{digest}"
        labels[name] = label
        taken.add(label)
    return labels
