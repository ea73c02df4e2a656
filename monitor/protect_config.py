"""The section `protect` of the configuration: whether, where and how much of good checkpoints is kept safe.

A model and its check only; nothing is opened or made here.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class ProtectConfig(BaseModel):
    """Off unless `enabled`. `directory` None is `protected` in the user's state directory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = False
    directory: str | None = Field(default=None, min_length=1)
    bytes_max: int = Field(default=100 * 2**30, ge=1)
    keep: int = Field(default=1, ge=1, le=1000)
    bytes_per_second: int | None = Field(default=200_000_000, ge=1_000_000)
    timeout_seconds: float = Field(default=3600.0, ge=1)

    @property
    def place(self) -> str:
        """Return the directory as an absolute path."""
        if self.directory is not None:
            return os.path.abspath(os.path.expanduser(self.directory))
        state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
        return os.path.join(state, "ckptwatch", "protected")


def place_problem(protect: ProtectConfig, roots: tuple[str, ...]) -> str | None:
    """Return why copies cannot be kept where they are to be, None where they can: never within what is watched."""
    place = os.path.realpath(protect.place)
    for root in roots:
        watched = os.path.realpath(os.path.expanduser(root))
        if os.path.commonpath([place, watched]) == watched:
            return f"{place} lies in the watched directory {watched}: copies would be taken for checkpoints"
    return None
