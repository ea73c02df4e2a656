"""Golden files: what a document looked like when somebody last looked at it. CKPTWATCH_GOLDEN=write renews them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[1] / "golden"


def check_golden(name: str, document: Any) -> None:
    """Assert that a JSON document equals the golden file of this name."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path = GOLDEN / name
    if os.environ.get("CKPTWATCH_GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.exists(), f"there is no {path.name}; write it with `make golden`"
    assert text == path.read_text()
