"""What inert nodes mean: tensors of PyTorch and arrays of NumPy, recognised by exact patterns, checked, never built.

Every number that comes from the pickle is checked for type and range here. Which storage a tensor may read, and
whether the storage is there, is for the archive to decide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite, prod

import numpy as np

from monitor.read.access.strided import contiguous_strides
from monitor.read.dtypes import DTYPES
from monitor.read.pickles.inert_nodes import Node, Pairs, Persistent, Ref

_STORAGE_DTYPES = {
    **{"FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16"},
    **{"LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8"},
    **{"ByteStorage": "uint8", "BoolStorage": "bool"},
    **{"ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128"},
    **{"QInt8Storage": "qint8", "QUInt8Storage": "quint8", "QInt32Storage": "qint32"},
    **{"QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4"},
}
_STORAGE_ITEMSIZES = {"qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1}
_UNTYPED = "UntypedStorage"
_STORAGE_MODULES = frozenset({"torch", "torch.cuda", "torch.storage"})
_DTYPE_ALIASES = {"half": "float16", "float": "float32", "double": "float64", "short": "int16", "int": "int32"} | {
    **{"long": "int64", "cfloat": "complex64", "cdouble": "complex128"}
}
_NUMPY_ARRAY_MODULES = frozenset({"numpy.core.multiarray", "numpy._core.multiarray"})
_SIZE_MAX = 2**63
_STRIDED = {
    ("torch._utils", "_rebuild_tensor"): 4,
    ("torch._utils", "_rebuild_tensor_v2"): 6,
    ("torch._utils", "_rebuild_tensor_v3"): 7,
}
_WRAPPERS = frozenset({("torch._utils", "_rebuild_parameter"), ("torch._utils", "_rebuild_parameter_with_state")})
_FROM_DEVICE = frozenset(
    {("torch._utils", "_rebuild_device_tensor_from_numpy"), ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor")}
)
_UNREADABLE = {
    ("torch._utils", "_rebuild_sparse_tensor"): "sparse tensors are not read",
    ("torch._utils", "_rebuild_sparse_csr_tensor"): "sparse tensors are not read",
    ("torch._utils", "_rebuild_nested_tensor"): "nested tensors are not read",
    ("torch._utils", "_rebuild_qtensor"): "quantised tensors are not read",
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): "the tensor was on the meta device and has no values",
    (
        "torch._utils",
        "_rebuild_wrapper_subclass",
    ): "the tensor is of a class of its own (such as DTensor) without storage",
    ("torch._utils", "_rebuild_xla_tensor"): "XLA tensors are not read",
}
WRAPPER_DEPTH_MAX = 8


class TensorError(Exception):
    """One tensor breaks a rule; the others are not affected."""


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage by its key in the archive; `dtype` is None for untyped bytes, `n_elements` counts its own elements."""

    key: str
    dtype: str | None
    n_elements: int

    @property
    def n_bytes(self) -> int:
        """Return the size that the pickle claims."""
        if self.dtype is None:
            return self.n_elements
        known = DTYPES.get(self.dtype)
        return self.n_elements * (known.itemsize if known is not None else _STORAGE_ITEMSIZES[self.dtype])


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTensor:
    """A tensor as a pickle describes it; offset and strides are in elements.

    Values lie in `storage`, or inline in `data`; where neither is given, `problem` says why there are none.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    offset: int = 0
    storage: StorageRef | None = None
    data: bytes | None = None
    big_endian: bool = False
    conjugate: bool = False
    negative: bool = False
    is_parameter: bool = False
    problem: str | None = None


def tensor_of(value: object, dimensions_max: int) -> FoundTensor | None:
    """Return the tensor or array that a node stands for, None for anything else.

    A tensor that breaks a rule comes back with its `problem`, dtype "unknown" and shape () where these are not known.
    """
    if type(value) not in (Node, Persistent):
        return None
    try:
        return _tensor_of(value, dimensions_max, 0)
    except TensorError as error:
        return FoundTensor(dtype="unknown", shape=(), problem=str(error))


def _tensor_of(value: object, dimensions_max: int, depth: int) -> FoundTensor | None:
    if type(value) is Persistent:
        storage = storage_of(value)
        dtype = storage.dtype or "uint8"
        shape = (storage.n_elements,)
        return FoundTensor(dtype=dtype, shape=shape, strides=(1,), storage=storage)
    if type(value) is not Node or type(value.function) is not Ref:
        return None
    if depth > WRAPPER_DEPTH_MAX:
        raise TensorError("the tensor is wrapped too often")
    name = (value.function.module, value.function.name)
    args = value.args
    if type(args) is not tuple:
        return None
    if name in _STRIDED:
        return _strided(name[1], args, _STRIDED[name], dimensions_max)
    if name in _WRAPPERS or name in _FROM_DEVICE:
        inner = _tensor_of(args[0], dimensions_max, depth + 1) if args else None
        if inner is None:
            raise TensorError("a parameter without a tensor")
        return replace(inner, is_parameter=inner.is_parameter or name in _WRAPPERS)
    if name == ("torch._tensor", "_rebuild_from_type_v2"):
        if len(args) < 3:
            raise TensorError("a tensor subclass without its tensor")
        return _tensor_of(Node(args[0], args[2]), dimensions_max, depth + 1)
    if name in _UNREADABLE:
        return FoundTensor(dtype=_stated_dtype(args), shape=_stated_shape(args), problem=_UNREADABLE[name])
    if name[0] in _NUMPY_ARRAY_MODULES and name[1] == "_reconstruct":
        return _array(value, dimensions_max)
    return None


def storage_of(value: object) -> StorageRef:
    """Return the storage that a persistent reference names; raise TensorError for any other shape of reference."""
    if type(value) is not Persistent or type(value.id) is not tuple or len(value.id) != 5:
        raise TensorError("a storage reference that is not one of PyTorch's")
    tag, kind, key, location, n_elements = value.id
    if tag != "storage" or type(kind) is not Ref or type(key) is not str or type(location) is not str:
        raise TensorError("a storage reference that is not one of PyTorch's")
    if type(n_elements) is not int or not 0 <= n_elements < _SIZE_MAX:
        raise TensorError("a storage whose size is no size")
    if kind.module not in _STORAGE_MODULES or (kind.name not in _STORAGE_DTYPES and kind.name != _UNTYPED):
        raise TensorError("a storage of an unknown type")
    return StorageRef(key, _STORAGE_DTYPES.get(kind.name), n_elements)


def _strided(name: str, args: tuple[object, ...], n_args_min: int, dimensions_max: int) -> FoundTensor:
    if not n_args_min <= len(args) <= n_args_min + 1:
        raise TensorError(f"{name} with {len(args)} arguments")
    storage = storage_of(args[0])
    shape, strides = sizes_of(args[2], dimensions_max), sizes_of(args[3], dimensions_max)
    offset = args[1]
    if type(offset) is not int or not 0 <= offset < _SIZE_MAX or len(shape) != len(strides):
        raise TensorError("a tensor whose offset, shape and strides do not fit together")
    if name == "_rebuild_tensor_v3":
        dtype = dtype_name(args[6])
        metadata = args[7] if len(args) > 7 else None
    else:
        dtype = storage.dtype or "uint8"
        metadata = args[6] if len(args) > 6 else None
    flags = _true_flags(metadata)
    problem = None
    if dtype not in DTYPES:
        problem = f"elements of dtype {dtype} are not read"
    elif "conj" in flags and not dtype.startswith("complex"):
        problem = "a conjugate of something that is not complex"
    return FoundTensor(
        dtype=dtype,
        shape=shape,
        strides=strides,
        offset=offset,
        storage=storage,
        conjugate="conj" in flags,
        negative="neg" in flags,
        problem=problem,
    )


def sizes_of(value: object, dimensions_max: int) -> tuple[int, ...]:
    """Return the sizes in a tuple or torch.Size; raise TensorError for anything else."""
    if (
        type(value) is Node
        and type(value.function) is Ref
        and value.function.name == "Size"
        and len_of(value.args) == 1
    ):
        assert type(value.args) is tuple
        value = value.args[0]
    if type(value) is not tuple or len(value) > dimensions_max:
        raise TensorError(f"a tensor whose shape or strides are no tuple of at most {dimensions_max} sizes")
    sizes = []
    for size in value:
        if type(size) is not int or not 0 <= size < _SIZE_MAX:
            raise TensorError("a tensor with a size or stride that is none")
        sizes.append(size)
    return tuple(sizes)


def len_of(value: object) -> int:
    """Return the length of a tuple, -1 for anything else."""
    return len(value) if type(value) is tuple else -1


def dtype_name(value: object) -> str:
    """Return the name of a torch.dtype; raise TensorError for anything else."""
    if type(value) is not Ref or value.module != "torch" or len(value.name) > 40 or not value.name.isidentifier():
        raise TensorError("a tensor whose dtype is none")
    return _DTYPE_ALIASES.get(value.name, value.name)


def _true_flags(metadata: object) -> set[str]:
    if type(metadata) is not Pairs:
        return set()
    return {key for key, value in metadata.pairs if type(key) is str and value is True}


def _stated_dtype(args: tuple[object, ...]) -> str:
    for value in args:
        if type(value) is Ref and value.module == "torch" and _DTYPE_ALIASES.get(value.name, value.name) in DTYPES:
            return _DTYPE_ALIASES.get(value.name, value.name)
        if type(value) is Persistent:
            try:
                return storage_of(value).dtype or "uint8"
            except TensorError:
                break
    return "unknown"


def _stated_shape(args: tuple[object, ...]) -> tuple[int, ...]:
    for value in args[:4]:
        try:
            return sizes_of(value, 64)
        except TensorError:
            continue
    return ()


# NumPy.


def bytes_of(value: object) -> bytes | None:
    """Return bytes, also where an old protocol wrote them as text to be encoded; None for anything else."""
    if type(value) is bytes:
        return value
    if type(value) is not Node or type(value.function) is not Ref or type(value.args) is not tuple:
        return None
    name, args = (value.function.module, value.function.name), value.args
    if name == ("_codecs", "encode") and len(args) == 2 and type(args[0]) is str and args[1] == "latin1":
        try:
            return args[0].encode("latin-1")
        except UnicodeEncodeError:
            return None
    if name in (("builtins", "bytes"), ("__builtin__", "bytes")) and not args:
        return b""
    return None


def numpy_scalar(value: Node) -> int | float | None:
    """Return the real number that a pickled NumPy scalar stands for, None for anything else."""
    if type(value.function) is not Ref or value.function.module not in _NUMPY_ARRAY_MODULES:
        return None
    args = value.args
    if value.function.name != "scalar" or type(args) is not tuple or len(args) != 2:
        return None
    try:
        dtype = _numpy_dtype(args[0])
    except TensorError:
        return None
    data = bytes_of(args[1])
    if data is None or len(data) != dtype.itemsize or dtype.kind not in "biuf":
        return None
    number = np.frombuffer(data, dtype)[0].item()
    return number if isinstance(number, int) or isfinite(number) else None


def _numpy_dtype(value: object) -> np.dtype[np.generic]:
    """Return the dtype with its byte order; only plain numbers and booleans pass."""
    if type(value) is not Node or type(value.function) is not Ref or type(value.args) is not tuple or not value.args:
        raise TensorError("an array whose dtype is none")
    code, order = value.args[0], "="
    if (value.function.module, value.function.name) != ("numpy", "dtype") or type(code) is not str:
        raise TensorError("an array whose dtype is none")
    if type(value.state) is tuple and len(value.state) > 1 and type(value.state[1]) is str:
        order = value.state[1]
    if len(code) != 2 or code[0] not in "biufc" or not code[1].isdecimal():
        if code in ("c16",):
            return np.dtype("<c16" if order != ">" else ">c16")
        raise TensorError("only arrays of plain numbers are read")
    try:
        dtype = np.dtype(code)
    except TypeError:
        raise TensorError("an array whose dtype is none") from None
    if dtype.newbyteorder("=").name not in DTYPES:
        raise TensorError("only arrays of plain numbers are read")
    return dtype.newbyteorder(">" if order == ">" else "<")


def _array(value: Node, dimensions_max: int) -> FoundTensor:
    state = value.state
    if type(state) is not tuple or len(state) != 5:
        raise TensorError("an array without its state")
    _, shape_value, dtype_value, is_fortran, data_value = state
    shape = sizes_of(shape_value, dimensions_max)
    dtype = _numpy_dtype(dtype_value)
    data = bytes_of(data_value)
    if data is None:
        raise TensorError("only arrays of plain numbers are read")
    if prod(shape) * dtype.itemsize != len(data):
        raise TensorError(f"an array of {len(data)} bytes whose shape needs {prod(shape) * dtype.itemsize}")
    strides = contiguous_strides(shape)
    if is_fortran is True:
        strides = tuple(reversed(contiguous_strides(tuple(reversed(shape)))))
    native = dtype.newbyteorder("=")
    return FoundTensor(
        dtype=native.name,
        shape=shape,
        strides=strides,
        data=data,
        big_endian=dtype.byteorder == ">",
    )
