"""Damage to the bytes of a valid checkpoint: all of it follows from a seeded random number generator.

Besides blind damage it looks into containers, since a checksum would refuse most of what is changed from outside: a
member of a zip, the content of a compressed stream, a block of a TensorFlow index are changed and sealed again.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence

from monitor.read.tensorflow.tensor_bundle import crc32c
from tests.hostile.seeds import Seed

_BYTES_MAX = 1 << 18  # of one changed file: the readers' own limits are tested elsewhere, here speed counts
_NUMBERS = (0, 1, 2, 7, 63, 64, 65, 127, 128, 255, 256, 1 << 15, (1 << 16) - 1, 1 << 20, (1 << 31) - 1, 1 << 31)
_HUGE = ((1 << 32) - 1, 1 << 32, 1 << 40, (1 << 61) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 8)
_TEXTS = (
    *(
        b"-1",
        b"0",
        b"1e999",
        b"-0",
        b"NaN",
        b"true",
        b"null",
        b"[]",
        b"{}",
        b'""',
        b"1" * 5000,
        b"18446744073709551616",
    ),
    *(b"../../etc/passwd", b"/etc/hostname", b"file:///etc/passwd", b"\0", b"\xff\xfe", b"\xe2\x80\xae", b"[" * 2000),
    *(
        b"\n",
        b'"',
        b"'",
        b"\\",
        b"{{7*7}}",
        b"<script>",
        b"__class__",
        b"A" * 3000,
        b"F64",
        b"I8",
        b"BOOL",
        b"O",
        b"|O",
    ),
    *(b"9223372036854775807", b"4294967296", b"(2, 3, -1)", b"True", b",", b"os\nsystem\n", b"nan", b"F8_E4M3"),
)
_PICKLE = (
    *(b".", b"0", b"1", b"2", b"(", b"t", b"l", b"d", b"}", b"]", b")", b"e", b"a", b"s", b"u", b"b", b"R", b"Q", b"o"),
    *(b"\x81", b"\x92", b"\x93", b"\x94", b"\x85", b"\x86", b"\x87", b"\x88", b"\x89", b"\x8f", b"\x90", b"\x91"),
    *(b"q\0", b"h\0", b"h\1", b"r\xff\xff\xff\x7f", b"j\1\0\0\0", b"cos\nsystem\n", b"ios\nsystem\n", b"N", b"K\0"),
    *(b"\x82\1", b"\x97", b"\x98", b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x8a\x08\0\0\0\0\0\0\0\x80", b"I-1\n"),
    *(b"X\xff\xff\xff\xff", b"\x8e\0\0\0\0\0\1\0\0", b"B\xff\xff\xff\x7f", b"Pkey\n", b"F1e999\n", b"L99999999999L\n"),
)


def damaged(seed: Seed, others: Sequence[Seed], chooser: random.Random) -> dict[str, bytes | None]:
    """Return the files that differ from those of the seed; None stands for a file that is gone."""
    names = list(seed.files)
    # a unit's small files say most about it
    weights = [1.0 if 0 < len(seed.files[name]) < 20_000 else 0.3 for name in names]
    changed: dict[str, bytes | None] = {}
    for _ in range(chooser.choice((1, 1, 1, 2)) if len(names) > 1 else 1):
        name = chooser.choices(names, weights)[0]
        if len(names) > 1 and chooser.random() < 0.05:
            changed[name] = chooser.choice((None, b"", seed.files[chooser.choice(names)]))
            continue
        other = chooser.choice([*others, seed])
        donor = other.files[chooser.choice(list(other.files))]
        changed[name] = damaged_bytes(seed.files[name], donor, chooser)
    return changed


def damaged_bytes(data: bytes, donor: bytes, chooser: random.Random) -> bytes:
    """Return the bytes with one to eight changes, perhaps within the container that they are."""
    inside = _inside(data)
    if inside is not None and chooser.random() < 0.65:
        return inside(lambda content: _changed(content, donor, chooser), chooser)[:_BYTES_MAX]
    return _changed(data, donor, chooser)


def _changed(data: bytes, donor: bytes, chooser: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(chooser.choice((1, 1, 1, 2, 3, 8))):
        chooser.choice(_CHANGES)(made, donor, chooser)
    return bytes(made[:_BYTES_MAX])


def _place(made: bytearray, chooser: random.Random) -> int:
    """A place, more often near the beginning or the end, where headers and directories are."""
    n = len(made)
    near = min(n, 300)
    start = chooser.choice((0, 0, max(0, n - near), -1))
    return chooser.randrange(n + 1) if start < 0 else start + chooser.randrange(near + 1)


def _flip(made: bytearray, donor: bytes, chooser: random.Random) -> None:
    place = _place(made, chooser)
    if place < len(made):
        made[place] ^= 1 << chooser.randrange(8)


def _set(made: bytearray, donor: bytes, chooser: random.Random) -> None:
    place = _place(made, chooser)
    made[place : place + 1] = bytes([chooser.choice((0, 1, 0x7F, 0x80, 0xFF, chooser.randrange(256)))])


def _number(made: bytearray, donor: bytes, chooser: random.Random) -> None:
    width = chooser.choice((1, 2, 4, 4, 8, 8))
    value = chooser.choice(_NUMBERS + _HUGE) & ((1 << 8 * width) - 1)
    place = _place(made, chooser)
    made[place : place + width] = value.to_bytes(width, chooser.choice(("little", "little", "big")))


def _varint(made: bytearray, donor: bytes, chooser: random.Random) -> None:
    value, place = chooser.choice(_NUMBERS + _HUGE), _place(made, chooser)
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    made[place : place + chooser.choice((0, 1, 2))] = encoded + bytes([value])


def _cut(made: bytearray, donor: bytes, chooser: random.Random) -> None:
    del made[_place(made, chooser) :]


def _drop(made: bytearray, donor: bytes, chooser: random.Random) -> None:
    place = _place(made, chooser)
    del made[place : place + chooser.choice((1, 2, 4, 8, 64, 500))]


def _repeat(made: bytearray, donor: bytes, chooser: random.Random) -> None:
    place = _place(made, chooser)
    piece = bytes(made[place : place + chooser.choice((1, 2, 8, 32, 200))])
    times = min(chooser.choice((1, 1, 2, 10, 1000)), _BYTES_MAX // max(1, len(piece)))
    made[place:place] = piece * times


def _move(made: bytearray, donor: bytes, chooser: random.Random) -> None:
    place, other = _place(made, chooser), _place(made, chooser)
    n = chooser.choice((1, 4, 8, 40, 300))
    made[other : other + chooser.choice((0, n))] = made[place : place + n]


def _splice(made: bytearray, donor: bytes, chooser: random.Random) -> None:
    start = chooser.randrange(len(donor) + 1)
    n = chooser.choice((4, 16, 100, 1000))
    place = _place(made, chooser)
    made[place : place + chooser.choice((0, n))] = donor[start : start + n]


def _text(made: bytearray, donor: bytes, chooser: random.Random) -> None:
    place = _place(made, chooser)
    made[place : place + chooser.choice((0, 0, 1, 8))] = chooser.choice(_TEXTS)


def _digits(made: bytearray, donor: bytes, chooser: random.Random) -> None:
    runs = [match.span() for match in re.finditer(rb"\d+", made[:20_000])]
    if runs:
        start, end = chooser.choice(runs)
        made[start:end] = chooser.choice((*_TEXTS, *(b"%d" % number for number in _NUMBERS + _HUGE)))


def _words(made: bytearray, donor: bytes, chooser: random.Random) -> None:
    """Put one of the file's own words, or a hostile one, in the place of another."""
    words = [match.span() for match in re.finditer(rb"[A-Za-z_.][\w./]{2,}", made[:20_000])]
    if words:
        start, end = chooser.choice(words)
        own = chooser.choice(words)
        made[start:end] = chooser.choice((made[own[0] : own[1]], chooser.choice(_TEXTS)))


def _opcode(made: bytearray, donor: bytes, chooser: random.Random) -> None:
    place = _place(made, chooser)
    made[place : place + chooser.choice((0, 0, 1))] = chooser.choice(_PICKLE)


_CHANGES: tuple[Callable[[bytearray, bytes, random.Random], None], ...] = (
    *(_flip, _set, _number, _number, _varint, _cut, _drop, _repeat, _move, _splice, _text, _digits, _words, _opcode),
)

Change = Callable[[bytes], bytes]
Within = Callable[[Change, random.Random], bytes]


def _inside(data: bytes) -> Within | None:
    """Return what changes the content and closes the container over it again; None for what is no container."""
    if data.startswith(b"PK\3\4"):
        return lambda change, chooser: _zipped(data, change, chooser)
    if data[-8:] == struct.pack("<Q", 0xDB4775248B80FB57):
        return lambda change, chooser: _table(data, change, chooser)
    for magic, unpack, pack in (
        (b"\x78", zlib.decompress, zlib.compress),
        (b"\x1f\x8b", gzip.decompress, gzip.compress),
        (b"\xfd7zXZ", lzma.decompress, lzma.compress),
        (b"BZh", bz2.decompress, bz2.compress),
    ):
        if data.startswith(magic):
            try:
                content: bytes = unpack(data)
            except (zlib.error, lzma.LZMAError, OSError):
                return None
            return lambda change, chooser, pack=pack, content=content: pack(change(content))  # type: ignore[misc]
    return None


def _zipped(data: bytes, change: Change, chooser: random.Random) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        members = old.infolist()
        large = [m for m in members if m.file_size > 8] or members
        target = chooser.choice(large)
        telling = [m for m in large if m.filename.endswith((".pkl", ".json", ".npy", ".h5"))]
        if telling and chooser.random() < 0.7:
            target = chooser.choice(telling)
        for member in members:
            content = old.read(member)
            if member is target:
                content = change(content)
            new.writestr(member.filename, content, member.compress_type)
    return stream.getvalue()


def _table(data: bytes, change: Change, chooser: random.Random) -> bytes:
    """Change one block of a TensorFlow index, its length kept, and put its checksum right."""
    numbers, place = [], len(data) - 48
    for _ in range(4):
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        numbers.append(value)
    blocks = [(0, numbers[0] - 5), (numbers[2], numbers[3])]
    start, n = chooser.choice(blocks)
    content = change(data[start : start + n])[:n].ljust(n, b"\0")
    crc = crc32c(content + b"\0")
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    return data[:start] + content + b"\0" + struct.pack("<I", masked) + data[start + n + 5 :]
