"""Names of tensors that would break a terminal, a page or a scrape, through every way by which they can be seen."""

from __future__ import annotations

import html
import json
import re
import struct
from pathlib import Path

import pytest

from tests.support.daemons import DaemonProcess, ckptwatch, wait_for

pytestmark = pytest.mark.timeout(300)  # waits have their own, shorter limits

NAMES = {
    "long": "x" * 1_000_000,
    "control": "a\n# HELP ckptwatch_up 1\nckptwatch_up 0\r\x1b[31m\0",
    "bidi": "layer\u202egnp.exe\u2066",
    "markup": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "quotes": "\"'; DROP TABLE tensor; --\\",
    "template": "{{7*7}}${7*7}",
    "formula": "=cmd|'/c calc'!A1",
    "unicode": "\u0444\u0430\u0439\u043b\u2728",
}
FORBIDDEN = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


def write(path: Path, scale: float) -> None:
    header, data = {}, b""
    for name in NAMES.values():
        values = struct.pack("<4f", *(scale * i for i in range(1, 5)))
        header[name] = {"dtype": "F32", "shape": [4], "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def test_hostile_names_of_tensors_are_shown_and_do_no_harm_wherever_they_are_seen(tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    with DaemonProcess(tmp_path / "state", root) as daemon:
        for step in (1, 2, 3):
            write(root / f"step-{step}.safetensors", float(step))
        wait_for("the files to be measured", lambda: len(daemon.snapshots()) == 3)
        stored = daemon.snapshots()
        assert [s["status"] for s in stored] == ["complete"] * 3
        assert all(s["n_parameters"] == 4 * len(NAMES) for s in stored)
        scrape = daemon.get("/metrics")[1]
        assert "\nckptwatch_up 0" not in scrape
        assert daemon.metric("ckptwatch_snapshots_total") == 3
        assert len(scrape) < 1_000_000
        pages = [daemon.get("/")[1], daemon.get(f"/runs/{root.name}")[1]]
        for page in pages:
            assert page
            assert "<script>alert" not in page
            assert "<img src=x" not in page
            assert "49${" not in page
            assert not FORBIDDEN.search(html.unescape(page))
        histories = [
            ckptwatch("history", root.name, "--config", daemon.config_file, *flags) for flags in ((), ("--json",))
        ]
        for shown in histories:
            assert shown.returncode == 0, shown.stderr
            assert not FORBIDDEN.search(shown.stdout)
        assert "Traceback" not in daemon.log
        assert not FORBIDDEN.search(daemon.log)
        assert daemon.terminate() == 0


def test_hostile_names_are_told_apart_and_printable_in_inspect(tmp_path: Path) -> None:
    write(tmp_path / "step-1.safetensors", 1.0)
    shown = ckptwatch("inspect", tmp_path / "step-1.safetensors", "--json")
    assert shown.returncode == 0, shown.stderr
    names = [tensor["name"] for tensor in json.loads(shown.stdout)["tensors"]]
    assert len(set(names)) == len(NAMES)
    assert all(name.isprintable() and 0 < len(name) <= 1024 for name in names)
    assert NAMES["unicode"] in names
    plain = ckptwatch("inspect", tmp_path / "step-1.safetensors")
    assert plain.returncode == 0, plain.stderr
    assert not FORBIDDEN.search(plain.stdout)
