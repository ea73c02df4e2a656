"""Writes checkpoints with Orbax in its several layouts, and their true values beside them.

Run as `python tests/support/orbax_writer.py DIRECTORY`: a process of its own, since the frameworks are large.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp


def state() -> dict[str, Any]:
    """Return a train state after three steps of Adam."""
    key = jax.random.key(0)
    params = {
        "dense": {"kernel": jax.random.normal(key, (40, 30)), "bias": jnp.arange(30, dtype=jnp.bfloat16)},
        "zero": jnp.zeros((5, 4)),
    }
    optimizer = optax.adam(1e-2)
    moments = optimizer.init(params)
    for i in range(3):
        gradients = jax.tree.map(lambda p, i=i: jnp.full_like(p, 0.5 + i), params)
        updates, moments = optimizer.update(gradients, moments, params)
        params = optax.apply_updates(params, updates)
    return {
        "params": params,
        "opt_state": moments,
        "step": np.int64(3),
        "lr": 0.01,
        "batch_stats": {"mean": jnp.ones(3)},
    }


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the leaves by dotted path, bfloat16 as float32, which holds it exactly."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    found = {}
    for path, leaf in leaves:
        name = ".".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
        array = jnp.asarray(leaf) if isinstance(leaf, jax.Array) else np.asarray(leaf)
        found[name] = np.asarray(array.astype(jnp.float32) if array.dtype == jnp.bfloat16 else array)
    return found


def main(directory: Path) -> None:
    tree = state()
    np.savez(directory / "truth.npz", **flat(tree))
    with ocp.CheckpointManager(directory / "manager") as manager:
        manager.save(30, args=ocp.args.StandardSave(tree))
    with ocp.CheckpointManager(directory / "composite") as manager:
        arguments = {"state": ocp.args.StandardSave(tree), "meta": ocp.args.JsonSave({"a": 1})}
        manager.save(31, args=ocp.args.Composite(**arguments))
    for name, use_ocdbt, use_zarr3 in (("zarr", False, False), ("zarr3", False, True), ("ocdbt3", True, True)):
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt, use_zarr3=use_zarr3)) as checkpointer:
            checkpointer.save(directory / name, args=ocp.args.PyTreeSave(tree))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
