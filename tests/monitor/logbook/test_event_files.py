"""Event files as a real writer makes them, cut off and damaged."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX import SummaryWriter

from monitor.logbook.event_files import event_points, masked_crc32c
from monitor.logbook.points import LogPoint


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("events")
    generator = np.random.default_rng(0)
    with SummaryWriter(str(directory)) as writer:
        for step in range(0, 1000, 10):
            writer.add_scalar("train/loss", 2.0 - step / 1000, step)
            writer.add_scalar("accuracy", 0.5, step)
            writer.add_histogram("weights", generator.normal(size=1000), step)
            writer.add_scalar("val/loss", float("nan") if step == 500 else 3.0, step)
    (file,) = Path(directory).iterdir()
    return file.read_bytes()


def test_every_known_scalar_of_a_real_writer_is_read(written: bytes) -> None:
    losses = [p for p in event_points(written, whole=True) if p.key == "loss"]
    assert [p.step for p in losses] == list(range(0, 1000, 10))
    assert [p.value for p in losses] == pytest.approx([2.0 - p.step / 1000 for p in losses], rel=1e-6)
    evaluated = [p.value for p in event_points(written, whole=True) if p.key == "eval_loss"]
    assert sum(math.isnan(value) for value in evaluated) == 1
    assert len(evaluated) == 100


@pytest.mark.parametrize("start", [1, 7, 100, 5000, 20_001])
def test_the_end_of_a_file_gives_the_last_points_of_the_whole(written: bytes, start: int) -> None:
    everything = [(p.step, p.key) for p in event_points(written, whole=True)]
    found = [(p.step, p.key) for p in event_points(written[start:], whole=False)]
    assert found
    assert found == everything[-len(found) :]


@pytest.mark.parametrize("cut", [1, 5, 30, 1000])
def test_a_record_that_is_cut_off_ends_the_reading_quietly(written: bytes, cut: int) -> None:
    everything = [(p.step, p.key) for p in event_points(written, whole=True)]
    found = [(p.step, p.key) for p in event_points(written[:-cut], whole=True)]
    assert found == everything[: len(found)]
    assert len(found) < len(everything)


def test_a_length_that_lies_is_not_believed(written: bytes) -> None:
    assert event_points(struct.pack("<QI", 2**63, 0) + written, whole=True) == []
    length = struct.pack("<Q", 2**40)
    assert event_points(length + struct.pack("<I", masked_crc32c(length)) + b"x" * 100, whole=True) == []


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + b"\0\0\0\0"


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        (b"\x08\x01" + _field(4, struct.pack("<f", 0.5)), 0.5),
        (b"\x08\x02" + _field(4, struct.pack("<d", 0.25)), 0.25),
        (b"\x08\x01" + _field(5, struct.pack("<f", 1.5)), 1.5),
        (b"\x08\x01" + b"\x2d" + struct.pack("<f", 2.5), 2.5),
    ],
)
def test_scalars_that_are_tensors_as_tensorflow_writes_them_are_read(tensor: bytes, value: float) -> None:
    event = b"\x10\x07" + _field(5, _field(1, _field(1, b"loss") + _field(8, tensor)))
    assert event_points(_record(event), whole=True) == [LogPoint(7, "loss", value)]


def test_a_tensor_of_several_numbers_is_no_scalar() -> None:
    tensor = b"\x08\x01" + _field(4, struct.pack("<ff", 0.5, 0.5))
    event = b"\x10\x07" + _field(5, _field(1, _field(1, b"loss") + _field(8, tensor)))
    assert event_points(_record(event), whole=True) == []


def test_a_negative_step_is_none() -> None:
    event = b"\x10" + b"\xff" * 9 + b"\x01" + _field(5, _field(1, _field(1, b"loss") + b"\x15" + struct.pack("<f", 1)))
    assert event_points(_record(event), whole=True) == []


def test_the_checksum_is_crc32c_as_published() -> None:
    # RFC 3720, B.4: 32 bytes of zeros give 0x8A9136AA; masked as TFRecord does.
    crc = 0x8A9136AA
    assert masked_crc32c(bytes(32)) == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_make_the_reader_raise(content: bytes, whole: bool) -> None:
    event_points(content, whole=whole)
    event_points(_record(content), whole=True)
    event_points(_record(b"\x10\x07" + _field(5, _field(1, content[:100]))), whole=True)
