"""Build pickles opcode by opcode, also such as no pickler would write. What they would run only touches a file."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping

STOP = b"."
EMPTY_TUPLE = b")"


def ref(module: str, name: str) -> bytes:
    """GLOBAL."""
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    raw = value.to_bytes(16, "little", signed=True)
    return b"\x8a\x10" + raw


def group(*parts: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(parts) + b"t"


def mapping(pairs: Mapping[str, bytes] | list[tuple[bytes, bytes]]) -> bytes:
    """A dict, keys given as texts or as opcodes."""
    entries = [(text(key), value) for key, value in pairs.items()] if isinstance(pairs, Mapping) else pairs
    return b"}(" + b"".join(key + value for key, value in entries) + b"u"


def call(module: str, name: str, *args: bytes) -> bytes:
    return ref(module, name) + group(*args) + b"R"


def persistent(key: bytes, n_elements: int = 4, kind: str = "FloatStorage", location: bytes = text("cpu")) -> bytes:
    return group(text("storage"), ref("torch", kind), key, location, integer(n_elements)) + b"Q"


def tensor(
    key: str = "0",
    *,
    n_elements: int = 4,
    offset: bytes | int = 0,
    shape: bytes | tuple[int, ...] = (4,),
    stride: bytes | tuple[int, ...] = (1,),
    kind: str = "FloatStorage",
) -> bytes:
    """A call of torch._utils._rebuild_tensor_v2; parts may be given as opcodes to make them wrong."""

    def sizes(value: bytes | tuple[int, ...]) -> bytes:
        return value if isinstance(value, bytes) else group(*(integer(size) for size in value))

    return call(
        "torch._utils",
        "_rebuild_tensor_v2",
        persistent(text(key), n_elements, kind),
        offset if isinstance(offset, bytes) else integer(offset),
        sizes(shape),
        sizes(stride),
        b"\x89",
        ref("collections", "OrderedDict") + EMPTY_TUPLE + b"R",
    )


def archive(
    pickle: bytes,
    storages: Mapping[str, bytes] | None = None,
    *,
    root: str = "archive",
    byteorder: bytes | None = b"little",
    extra: Mapping[str, bytes] | None = None,
) -> bytes:
    """The zip that torch.save would put around a pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as made:
        made.writestr(f"{root}/data.pkl", pickle)
        if byteorder is not None:
            made.writestr(f"{root}/byteorder", byteorder)
        for key, data in (storages or {}).items():
            made.writestr(f"{root}/data/{key}", data)
        made.writestr(f"{root}/version", b"3\n")
        for name, data in (extra or {}).items():
            made.writestr(name, data)
    return stream.getvalue()


def payloads(canary: str) -> dict[str, bytes]:
    """Values that would create the file `canary` when loaded by anything that loads."""
    shell = text(f"touch {canary}")
    path = text(canary)
    touch = ref("posix", "system") + group(shell) + b"R"
    return {
        "reduce": call("os", "system", shell),
        "posix": touch,
        "stack_global": text("os") + text("system") + b"\x93" + group(shell) + b"R",
        "memoised_stack_global": text("os")
        + b"q\x63"
        + text("system")
        + b"q\x64"
        + b"00h\x63h\x64\x93"
        + group(shell)
        + b"R",
        "inst": b"(" + shell + b"ios\nsystem\n",
        "obj": b"(" + ref("os", "system") + shell + b"o",
        "obj_popped": b"(" + ref("os", "system") + shell + b"o0N",
        "newobj": ref("os", "system") + group(shell) + b"\x81",
        "newobj_ex": ref("os", "system") + group(shell) + mapping({"command": shell}) + b"\x92",
        "setstate": call("collections", "OrderedDict")
        + mapping({"__setstate__": touch, "__class__": ref("os", "system"), "__reduce__": touch})
        + b"b",
        "eval": call("builtins", "eval", text(f"open({canary!r}, 'w')")),
        "exec": call("builtins", "exec", text(f"open({canary!r}, 'w')")),
        "open": call("builtins", "open", path, text("w")),
        "nested_loads": call("pickle", "loads", b"B" + struct.pack("<I", len(touch) + 1) + touch + STOP),
        "torch_load": call("torch", "load", path),
        "numpy_load": call("numpy", "load", path),
        "marshal": call("marshal", "loads", b"C\x01N"),
        "resolve_name": call("pkgutil", "resolve_name", text("os:system")) + group(shell) + b"R",
        "import_module": call("importlib", "import_module", text("antigravity")),
        "partial": call("functools", "partial", ref("os", "system"), shell) + EMPTY_TUPLE + b"R",
        "attrgetter": call("operator", "attrgetter", text("system")) + group(ref("posix", "path")) + b"R",
        "file_handler": call("logging", "FileHandler", path),
        "path_touch": call("pathlib", "Path.touch", call("pathlib", "Path", path)),
        "getattr": call("builtins", "getattr", call("builtins", "__import__", text("os")), text("system"))
        + group(shell)
        + b"R",
    }
