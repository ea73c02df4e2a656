"""ONNX models whose values lie within the file.

It is whole when the protocol buffer ends where the file ends and version, graph and operator sets are there; a file
that is cut between two entries of its metadata, after all of these, cannot be told from a whole one.
"""

from __future__ import annotations

from typing import ClassVar

from monitor.read.bounded_file import BoundedFile
from monitor.read.models.onnx_checkpoint import OnnxCheckpoint, open_onnx
from monitor.read.notes import FormatNotes
from monitor.read.reader import ReadLimits

_IR_VERSION_KEY, _PRODUCER_KEY, _GRAPH_KEY = 0x08, 0x12, 0x3A
_LATER_KEYS = frozenset({0x1A, 0x22, 0x28, 0x32, _GRAPH_KEY})  # producer version, domain, model version, text, graph
_IR_VERSION_MAX = 40
_PRODUCER_BYTES_MAX = 64


class OnnxReader:
    """The reader of `.onnx` files."""

    name: ClassVar[str] = "onnx"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="`.onnx`",
        written_by="ONNX exporters; the initializers of the main graph",
        optimizer_state="none",
        whole="the protocol buffer ends with the file, and version, graph and operator sets are there",
        not_yet="any of it is missing",
        never="values that do not fit their shape",
        step="a number of a step's name in the model's metadata",
        safety="the protocol buffer is walked in place; nodes are passed over, and nothing of the graph is run",
        limits=(
            "values packed within bytes (INT4 and its like) are hashed, not measured",
            "texts and values in segments are a tensor's `problem`",
            "sparse initializers are left out",
        ),
        tested_in="tests/monitor/read/formats/test_onnx.py",
        tested_with="onnx",
    )

    @classmethod
    def sniff(cls, head: bytes, path: str) -> bool:  # noqa: ARG003 - the contract gives both
        """Say whether a model begins: its version, then the name of its producer or what follows that."""
        if len(head) < 4 or head[0] != _IR_VERSION_KEY or not 1 <= head[1] <= _IR_VERSION_MAX:
            return False
        if head[2] != _PRODUCER_KEY:
            return head[2] in _LATER_KEYS
        producer = head[4 : 4 + head[3]]
        return head[3] <= _PRODUCER_BYTES_MAX and producer.isascii() and producer.decode("ascii").isprintable()

    def open(self, file: BoundedFile, limits: ReadLimits) -> OnnxCheckpoint:
        """Walk the model; initializers whose values lie in another file have a problem."""
        return open_onnx(file, limits, lambda _: None)
