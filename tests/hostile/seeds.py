"""Small valid checkpoints of every format, for others to damage.

Run as `python -m tests.hostile.seeds DIRECTORY [torch|tensorflow|jax]`: it writes DIRECTORY/FORMAT/VARIANT/..., and in
each a file `open_here` (not part of the checkpoint) with the name to open. One framework a process: two large ones in
one process disagree about libraries.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.daemons import REPOSITORY, clean_environment

MARK = "open_here"
LONG_AGO_NS = 1_600_000_000_000_000_000  # a save under way is told by files younger than others
PARTS = ("torch", "tensorflow", "jax")


@dataclass(frozen=True, slots=True)
class Seed:
    """A valid checkpoint: the directory it is in, what to open there, and its files, by their paths within it."""

    format: str
    variant: str
    target: str
    files: dict[str, bytes]


def load(directory: Path) -> dict[str, list[Seed]]:
    """Return the written seeds by format."""
    found: dict[str, list[Seed]] = {}
    for mark in sorted(directory.glob(f"*/*/{MARK}")):
        base = mark.parent
        files = {
            str(path.relative_to(base)): path.read_bytes()
            for path in sorted(base.rglob("*"))
            if path.is_file() and path != mark
        }
        found.setdefault(base.parent.name, []).append(
            Seed(format=base.parent.name, variant=base.name, target=mark.read_text(), files=files)
        )
    return found


def write_all(directory: Path) -> None:
    """Write the seeds of all frameworks, once; processes that ask at the same time wait for the first."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for part in PARTS:
            done = directory / f"{part}.done"
            if done.exists():
                continue
            finished = subprocess.run(
                [sys.executable, "-W", "ignore", "-m", "tests.hostile.seeds", str(directory), part],
                cwd=REPOSITORY,
                env=clean_environment(
                    CUDA_VISIBLE_DEVICES="", TF_CPP_MIN_LOG_LEVEL="3", JAX_PLATFORMS="cpu", OMP_NUM_THREADS="1"
                ),
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
            assert finished.returncode == 0, finished.stderr[-4000:]
            done.touch()


@contextmanager
def _seed(directory: Path, format_name: str, variant: str, target: str) -> Iterator[Path]:
    """Yield the path to write to; the mark is put when that has been done."""
    base = directory / format_name / variant
    base.mkdir(parents=True, exist_ok=True)
    yield base / target
    (base / MARK).write_text(target)


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    """Return few and small arrays, so that most bytes of a file are structure."""
    numbers = np.random.default_rng(1)
    return {
        "encoder.weight": numbers.standard_normal((3, 4)).astype(np.float32),
        "encoder.bias": np.array([0.0, np.nan, np.inf], np.float32),
        "steps": np.array([2**62, -5], np.int64),
        "scale": np.array(2.5, np.float32),
    }


def _save_h5(path: Path, **packing: Any) -> None:
    import h5py

    with h5py.File(path, "w", libver="latest" if packing else "earliest") as file:
        for name, array in arrays().items():
            file.create_dataset(name, data=array, **(packing if array.ndim else {}))


def _save_keras(path: Path) -> None:
    inner = path.with_name("inner.h5")
    _save_h5(inner)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", "{}")
        archive.write(inner, "model.weights.h5")
    inner.unlink()


def _save_gguf(path: Path) -> None:
    import gguf

    made = gguf.GGUFWriter(path, "llama")
    made.add_uint32("llama.block_count", 2)
    made.add_token_list(["a", "b"])
    made.add_array("llama.heads", [1, 2, 3])
    for name, array in arrays().items():
        made.add_tensor(name, np.ascontiguousarray(array).reshape(array.shape))
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()


def _onnx_model() -> Any:
    from onnx import TensorProto, helper, numpy_helper

    tensors = [numpy_helper.from_array(array, name) for name, array in arrays().items()]
    tensors.append(helper.make_tensor("typed", TensorProto.FLOAT, [2], [1.5, -2.0]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])]
    return helper.make_model(
        helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", inputs, outputs, tensors)
    )


def _save_sklearn(path: Path) -> None:
    import joblib
    from sklearn.linear_model import SGDClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = np.random.default_rng(0).standard_normal((20, 3))
    model = make_pipeline(StandardScaler(), SGDClassifier(max_iter=5, tol=None)).fit(features, features[:, 0] > 0)
    joblib.dump(model, path)


def _single_files(directory: Path) -> None:
    import joblib
    import lightgbm
    import onnx
    import skops.io
    import xgboost
    from flax import serialization
    from safetensors.numpy import save_file

    features = np.random.default_rng(0).standard_normal((60, 3))
    labels = (features[:, 0] > 0).astype(int)
    boosted = xgboost.train({"max_depth": 2, "nthread": 1}, xgboost.DMatrix(features, labels), 2)
    light = lightgbm.train(
        {"objective": "binary", "verbose": -1, "num_leaves": 3, "min_data_in_leaf": 5, "num_threads": 1},
        lightgbm.Dataset(features, labels),
        2,
    )
    packing = {"compression": "gzip", "shuffle": True, "fletcher32": True}
    writers: dict[tuple[str, str, str], Callable[[Path], object]] = {
        ("safetensors", "plain", "model.safetensors"): lambda p: save_file(
            {k: np.array(v, order="C") for k, v in arrays().items()}, p, {"step": "3"}
        ),
        ("npy", "plain", "model.npy"): lambda p: np.save(p, arrays()["encoder.weight"]),
        ("npz", "stored", "model.npz"): lambda p: np.savez(p, **arrays()),  # type: ignore[arg-type]
        ("npz", "deflated", "model.npz"): lambda p: np.savez_compressed(p, **arrays()),  # type: ignore[arg-type]
        ("pickle", "plain", "model.pkl"): lambda p: p.write_bytes(pickle.dumps(arrays(), protocol=5)),
        ("pickle", "old", "model.pkl"): lambda p: p.write_bytes(pickle.dumps(arrays(), protocol=0)),
        ("pickle", "joblib", "model.joblib"): lambda p: joblib.dump(arrays(), p),
        ("pickle", "zlib", "model.joblib"): lambda p: joblib.dump(arrays(), p, compress=("zlib", 3)),
        ("pickle", "xz", "model.joblib"): lambda p: joblib.dump(arrays(), p, compress=("xz", 3)),
        ("pickle", "sklearn", "model.joblib"): _save_sklearn,
        ("skops", "plain", "model.skops"): lambda p: skops.io.dump(arrays(), p),
        ("flax_msgpack", "plain", "model.msgpack"): lambda p: p.write_bytes(serialization.to_bytes(arrays())),
        ("gguf", "plain", "model.gguf"): _save_gguf,
        ("hdf5", "plain", "model.h5"): _save_h5,
        ("hdf5", "packed", "model.h5"): lambda p: _save_h5(p, **packing),
        ("keras", "plain", "model.keras"): _save_keras,
        ("onnx", "plain", "model.onnx"): lambda p: onnx.save(_onnx_model(), p),
        ("onnx_external", "plain", "model.onnx"): lambda p: onnx.save_model(
            _onnx_model(), p, save_as_external_data=True, location="model.onnx.data", size_threshold=0
        ),
        ("xgboost", "json", "model.json"): boosted.save_model,
        ("xgboost", "ubj", "model.ubj"): boosted.save_model,
        ("lightgbm", "plain", "model.txt"): light.save_model,
    }
    for (format_name, variant, target), write in writers.items():
        with _seed(directory, format_name, variant, target) as path:
            write(path)


def _write_torch(directory: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from torch.distributed.checkpoint.state_dict_saver import save

    from tests.support.deepspeed_writer import train, write_stage_2, write_stage_3
    from tests.support.megatron_writer import make_rank, write_legacy, write_torch_dist

    _single_files(directory)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    weights, state = model.state_dict(), optimizer.state_dict()
    whole = {"model": weights, "optimizer": state, "step": 3, "view": weights["weight"].t()[1:]}
    for format_name in ("torch_zip", "torch_legacy"):
        with _seed(directory, format_name, "plain", "model.pt") as path:
            torch.save(whole, path, _use_new_zipfile_serialization=format_name == "torch_zip")
    with _seed(directory, "torch_dcp", "plain", "step-5") as path:
        save({"model": weights, "step": 5}, checkpoint_id=path)
    trained = train([{"a.weight": (5, 3)}, {"b.bias": (3,), "norm": ()}])
    with _seed(directory, "deepspeed", "stage_2", "global_step40") as path:
        write_stage_2(path, trained, 2)
    with _seed(directory, "deepspeed", "stage_3", "global_step40") as path:
        write_stage_3(path, trained, 2)
    with _seed(directory, "megatron", "legacy", "iter_0000300") as path:
        write_legacy(path.parent, {f"mp_rank_{t:02d}": make_rank(t) for t in (0, 1)}, (2, 1, 1), distributed=True)
    with _seed(directory, "megatron", "torch_dist", "iter_0000300") as path:
        write_torch_dist(path.parent, make_rank(1), chained=True)
    with _seed(directory, "hf_trainer", "plain", "checkpoint-4") as path:
        path.mkdir()
        save_file(weights, path / "model.safetensors", {"format": "pt"})
        torch.save(state, path / "optimizer.pt")
        torch.save({"last_epoch": 4, "_last_lr": [0.1]}, path / "scheduler.pt")
        (path / "trainer_state.json").write_text(json.dumps({"global_step": 4, "epoch": 0.5, "log_history": []}))
    with _seed(directory, "accelerate", "plain", "checkpoint_1") as path:
        path.mkdir()
        save_file(weights, path / "model.safetensors", {"format": "pt"})
        torch.save(state, path / "optimizer.bin")
        torch.save({"step": 4}, path / "custom_checkpoint_0.pkl")
        torch.save({"step": 0}, path / "random_states_0.pkl")
    with _seed(directory, "peft", "plain", "adapter") as path:
        path.mkdir()
        save_file({"base_model.model.l.lora_A.weight": weights["weight"]}, path / "adapter_model.safetensors")
        (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    with _seed(directory, "sharded", "plain", "model.safetensors.index.json") as path:
        names = {name: f"model-{i:05d}-of-00002.safetensors" for i, name in enumerate(weights, 1)}
        for name, file in names.items():
            save_file({name: weights[name]}, path.with_name(file), {"format": "pt"})
        path.write_text(json.dumps({"metadata": {"total_size": 32}, "weight_map": names}))


def _write_tensorflow(directory: Path) -> None:
    import keras
    import tensorflow as tf

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(), "mse", run_eagerly=True)
    model.fit(np.ones((4, 3)), np.ones((4, 1)), verbose=0)
    with _seed(directory, "keras", "real", "model.keras") as path:
        model.save(path)
    with _seed(directory, "tf_checkpoint", "plain", "ckpt-3.index") as path:
        tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(path.with_suffix("")))
    with _seed(directory, "saved_model", "plain", "saved") as path:
        tf.saved_model.save(tf.train.Checkpoint(w=tf.Variable([1.0, 2.0]), b=tf.Variable(3.0)), str(path))
    with _seed(directory, "keras_sharded", "plain", "model.weights.json") as path:
        model.save_weights(path, max_shard_size=1e-7)


def _write_jax(directory: Path) -> None:
    import orbax.checkpoint as ocp

    tree = {"params": {"kernel": np.ones((3, 4), np.float32), "bias": np.arange(4.0)}, "step": np.int64(3)}
    layouts = (("zarr", False, False), ("zarr3", False, True), ("ocdbt", True, False))
    for variant, use_ocdbt, use_zarr3 in layouts:
        with _seed(directory, "orbax", variant, "30") as path:
            handler = ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt, use_zarr3=use_zarr3)
            with ocp.Checkpointer(handler) as checkpointer:
                checkpointer.save(path.resolve(), args=ocp.args.PyTreeSave(tree))


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    {"torch": _write_torch, "tensorflow": _write_tensorflow, "jax": _write_jax}[sys.argv[2]](Path(sys.argv[1]))
