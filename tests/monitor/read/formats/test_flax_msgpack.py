import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor.read.reader import ReadError
from monitor.read.registry import open_path
from storage.records import ProblemKind, TensorKind
from tests.conformance.reader import Arrays, ReaderConformance
from tests.support.memory import peak_bytes_of_reading
from tests.support.reading import bits, read_whole

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what JAX says of itself while it is imported
    from flax import serialization


class TestFlaxMsgpack(ReaderConformance):
    format = "flax_msgpack"

    def write(self, path: Path, arrays: Arrays) -> None:
        path.write_bytes(serialization.to_bytes(dict(arrays)))


@pytest.fixture(scope="module")
def trained() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import flax.linen as nn
        import jax
        import jax.numpy as jnp
        import optax
        from flax.training.train_state import TrainState

        model = nn.Sequential([nn.Dense(5), nn.BatchNorm(use_running_average=True), nn.Dense(1, dtype=jnp.bfloat16)])
        variables = model.init(jax.random.key(0), jnp.ones((2, 3)))
        create: Any = TrainState.create
        state = create(apply_fn=model.apply, params=variables["params"], tx=optax.adam(1e-3))
        gradients = jax.tree.map(jnp.ones_like, state.params)
        return variables, state.apply_gradients(grads=gradients)


def flat(tree: Any, above: str = "") -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", np.asarray(value)


def test_a_train_state_gives_parameters_optimizer_and_step(trained: Any, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.msgpack"
    path.write_bytes(serialization.to_bytes(trained[1]))
    whole = read_whole(path)
    assert whole.format == "flax_msgpack"
    assert whole.step == 1
    parameters = dict(flat(trained[1].params))
    assert {n for n, spec in whole.specs.items() if spec.kind is TensorKind.PARAMETER} == set(parameters)
    for name, expected in parameters.items():
        assert bits(whole.values[name]) == bits(expected)
        square = whole.specs[f"opt_state.0.nu.{name}"]
        assert (square.kind, square.shape) == (TensorKind.OPTIMIZER, expected.shape)


def test_variables_and_bare_parameters_have_the_same_names(trained: Any, tmp_path: Path) -> None:
    path = tmp_path / "variables.msgpack"
    path.write_bytes(serialization.to_bytes(trained[0]))
    whole = read_whole(path)
    parameters = set(dict(flat(trained[0]["params"])))
    assert parameters < set(whole.specs)
    assert whole.specs["batch_stats.layers_1.mean"].kind is TensorKind.BUFFER
    path.write_bytes(serialization.to_bytes(trained[0]["params"]))
    assert set(read_whole(path).specs) == parameters


def test_bfloat16_numbers_and_lists_are_read(tmp_path: Path) -> None:
    import ml_dtypes

    path = tmp_path / "x.msgpack"
    half = np.arange(5).astype(ml_dtypes.bfloat16)
    state = {"half": half, "epoch": 2, "loss": np.float32(0.5), "list": [half, "text", None, b"bytes", 3j]}
    path.write_bytes(serialization.msgpack_serialize(state))
    whole = read_whole(path)
    assert bits(whole.values["half"]) == bits(half)
    assert bits(whole.values["list.0"]) == bits(half)
    assert whole.epoch == 2.0
    assert whole.scalars["loss"] == 0.5


def test_an_array_that_flax_cuts_into_chunks_is_one_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 1000)
    path = tmp_path / "x.msgpack"
    large = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
    path.write_bytes(serialization.to_bytes({"params": {"large": large}}))
    assert path.read_bytes().count(b"__msgpack_chunked_array__") == 1
    whole = read_whole(path)
    np.testing.assert_array_equal(whole.values["large"], large)


def _array(shape: bytes, dtype: bytes, values: bytes) -> bytes:
    body = b"\x93" + shape + bytes([0xA0 + len(dtype)]) + dtype + b"\xc4" + bytes([len(values)]) + values
    return b"\xc7" + bytes([len(body)]) + b"\x01" + body


HOSTILE = {
    "a shape larger than its values": (b"\x81\xa1w" + _array(b"\x91\x04", b"float32", bytes(4)), ProblemKind.CORRUPT),
    "a shape that is text": (b"\x81\xa1w" + _array(b"\xa1x", b"float32", bytes(4)), ProblemKind.CORRUPT),
    "sizes beyond 64 bits": (
        b"\x81\xa1w" + _array(b"\x92" + b"\xcf" + b"\xff" * 8 + b"\x02", b"float32", bytes(4)),
        ProblemKind.CORRUPT,
    ),
    "a key twice": (b"\x82\xa1w\x01\xa1w\x02", ProblemKind.AMBIGUOUS),
    "a map as key": (b"\x81\xa1w\x81\x80\x01", ProblemKind.UNSUPPORTED),
    "a map of four billion": (b"\x81\xa1w\xdf\xff\xff\xff\xff", ProblemKind.INCOMPLETE),
    "a list of four billion": (b"\x81\xa1w\xdd\xff\xff\xff\xff", ProblemKind.INCOMPLETE),
    "an extension of four billion": (b"\x81\xa1w\xc9\xff\xff\xff\xff\x01", ProblemKind.INCOMPLETE),
    "lists within lists": (b"\x81\xa1w" + b"\x91" * 1000 + b"\x01", ProblemKind.LIMIT),
    "an unused code": (b"\x81\xa1w\xc1", ProblemKind.CORRUPT),
    "a broken text": (b"\x81\xa1w\xa1\xff", ProblemKind.CORRUPT),
}


@pytest.mark.parametrize(("data", "kind"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_tree_that_breaks_a_rule_is_refused(data: bytes, kind: ProblemKind, tmp_path: Path) -> None:
    path = tmp_path / "evil.msgpack"
    path.write_bytes(data)
    with pytest.raises(ReadError) as caught, open_path(str(path)):
        pass
    assert caught.value.kind is kind


@pytest.mark.slow
def test_two_gibibytes_need_the_memory_of_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "large.msgpack"
    n = 2**29
    body = b"\x93\x91\xce" + n.to_bytes(4, "big") + b"\xa7float32\xc6" + (4 * n - 4096).to_bytes(4, "big")
    n -= 1024
    body = body.replace(b"\xce\x20\x00\x00\x00", b"\xce" + n.to_bytes(4, "big"))
    with path.open("wb") as stream:
        stream.write(b"\x81\xa1w\xc9" + (len(body) + 4 * n).to_bytes(4, "big") + b"\x01" + body)
        stream.truncate(stream.tell() + 4 * n)
    assert peak_bytes_of_reading(path, n_elements=n) < 250 * 2**20
