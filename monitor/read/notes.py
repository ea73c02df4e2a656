"""What a reader says of its own format: the facts of which docs/formats.md is made, beside the code they are about.

Plain data, without which a reader works all the same. A test holds every built-in reader to have them, to name the test
that proves them, and that test to use the writer that they name.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatNotes:
    """What users are told of one format; texts are Markdown without line breaks, begun as after a colon.

    `whole` says when a file counts as complete, `not_yet` what is tried again, `never` what is refused for good.
    `tested_in` is the test that reads what the real writer wrote, `tested_with` the distribution that this writer is
    of; where it cannot be installed, `layout_of` names what the test's own writer imitates, else it is "".
    """

    files: str
    written_by: str
    optimizer_state: str
    whole: str
    not_yet: str
    never: str
    step: str
    safety: str
    tested_in: str
    tested_with: str
    layout_of: str = ""
    limits: tuple[str, ...] = ()
