"""Trains small Keras models and saves them in every way that Keras has, with their true values beside them.

Run as `python tests/support/keras_writer.py DIRECTORY`: a process of its own, since the framework is large.
For every model NAME it writes NAME.truth.npz: `v:<name>` a variable by its path without the model's name, `t:<name>`
the same for those that are trained, `s:<name>:<role>` a variable of the optimizer.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

_ROLES = {
    "_momentums": "exp_avg",
    "_velocities": "exp_avg_sq",
    "_velocity_hats": "max_exp_avg_sq",
    "_model_variables_moving_average": "average",
}
_RMSPROP = {"_velocities": "square_avg", "_momentums": "momentum_buffer", "_average_gradients": "grad_avg"}
_SGD = {"momentums": "momentum_buffer"}


def convolutional() -> Any:
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="first")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.DepthwiseConv2D(2)(x)
    x = layers.SeparableConv2D(3, 2)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(5, activation="relu", name="kept", trainable=False)(x)
    x = layers.Dropout(0.1)(x)
    model = keras.Model(inputs, layers.Dense(2, name="head")(x), name="net")
    model.compile(keras.optimizers.Adam(0.01, beta_2=0.98), "mse", run_eagerly=True)
    model.fit(np.random.rand(32, 8, 8, 3), np.random.rand(32, 2), epochs=2, verbose=0)
    return model


def sequence() -> Any:
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(11, 4)(inputs)
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(x)
    x = layers.MultiHeadAttention(2, 3)(x, x)
    x = layers.LayerNormalization()(x)
    x = layers.GRU(3)(x)
    x = keras.Sequential([layers.Dense(4), layers.Dense(3)], name="inner")(x)
    model = keras.Model(inputs, layers.Dense(1)(x))
    model.compile(keras.optimizers.AdamW(1e-3, amsgrad=True, use_ema=True), "mse", run_eagerly=True)
    model.fit(np.random.randint(0, 11, (32, 6)), np.random.rand(32, 1), epochs=1, verbose=0)
    return model


@keras.saving.register_keras_serializable()
class Subclassed(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.z_first = layers.Dense(3)
        self.blocks = [layers.Dense(3), layers.Dense(3)]
        self.a_last = layers.Dense(1, name="out")

    def call(self, x: Any) -> Any:
        x = self.z_first(x)
        for block in self.blocks:
            x = block(x)
        return self.a_last(x)


def subclassed() -> Any:
    model = Subclassed()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", run_eagerly=True)
    model.fit(np.random.rand(32, 4), np.random.rand(32, 1), epochs=1, verbose=0)
    return model


def mixed() -> Any:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(2, dtype="bfloat16", name="low")])
    model.compile(keras.optimizers.RMSprop(momentum=0.5, centered=True), "mse", run_eagerly=True)
    model.fit(np.random.rand(32, 4), np.random.rand(32, 2), epochs=1, verbose=0)
    return model


def everything(directory: Path) -> None:
    """Save one variable of every type in a checkpoint without Keras, and a text beside them."""
    names = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    arrays = {name: np.arange(-3, 5).astype(name).reshape(2, 4) for name in (*names, "bool", "complex64", "complex128")}
    module = tf.Module()
    module.kinds = {name: tf.Variable(array) for name, array in arrays.items()}
    module.brain = tf.Variable(tf.cast(arrays["float32"], tf.bfloat16))
    module.none = tf.Variable(tf.zeros((0, 3)))
    module.words = tf.Variable(["a", "bc"])
    module.many = [tf.Variable(float(i)) for i in range(300)]
    counters = {"epoch": tf.Variable(3.5), "global_step": tf.Variable(77, dtype=tf.int64)}
    tf.train.Checkpoint(net=module, **counters).write(str(directory / "everything"))
    np.savez(directory / "everything.truth.npz", **arrays)  # type: ignore[arg-type]


def version_one(directory: Path) -> None:
    """Save as TensorFlow 1 did: by the names of variables, without a graph of objects."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        weight = tf.compat.v1.get_variable("dense/kernel", (3, 2))
        step = tf.compat.v1.train.get_or_create_global_step()
        train = tf.compat.v1.train.AdamOptimizer().minimize(tf.reduce_sum(weight**2), global_step=step)
        session.run(tf.compat.v1.global_variables_initializer())
        session.run(train)
        tf.compat.v1.train.Saver().save(session, str(directory / "one" / "model.ckpt"), global_step=step)
        np.savez(directory / "one.truth.npz", kernel=session.run(weight))


def truth(model: Any) -> dict[str, Any]:
    """Return the values of all variables by the names that Keras shows."""
    is_functional = type(model).__name__ == "Functional"

    def name(variable: Any) -> str:
        path = str(variable.path)
        return path if is_functional else path.partition("/")[2]

    found = {}
    for variable in model.variables:
        if "seed_generator" not in variable.path:
            mark = "t" if variable.trainable else "v"
            found[f"{mark}:{name(variable)}"] = as_numpy(variable)
    optimizer = model.optimizer
    roles = {"SGD": _SGD, "RMSprop": _RMSPROP}.get(type(optimizer).__name__, _ROLES)
    for attribute, role in roles.items():
        for parameter, variable in zip(
            model.trainable_variables, getattr(optimizer, attribute, None) or (), strict=False
        ):
            found[f"s:{name(parameter)}:{role}"] = as_numpy(variable)
    found["iterations"] = np.asarray(int(optimizer.iterations))
    return found


def as_numpy(variable: Any) -> Any:
    """Return a variable's value; npz has no bfloat16, and float32 holds it exactly."""
    return np.asarray(tf.cast(variable.value, tf.float32) if variable.dtype == "bfloat16" else variable.value)


def main(directory: Path) -> None:
    keras.utils.set_random_seed(7)
    (directory / "sharded").mkdir()
    everything(directory)
    version_one(directory)
    for build in (convolutional, sequence, subclassed, mixed):
        model, name = build(), build.__name__
        np.savez(directory / f"{name}.truth.npz", **truth(model))
        model.save_weights(directory / f"{name}.weights.h5")
        model.save(directory / f"{name}.keras")
        if name not in ("subclassed", "mixed"):
            model.save(directory / f"{name}.h5")
        checkpoint = tf.train.Checkpoint(
            model=model, optimizer=model.optimizer, step=tf.Variable(40 + 2, dtype=tf.int64)
        )
        checkpoint.write(str(directory / f"{name}.tf"))
        if name == "sequence":
            model.save_weights(directory / "sharded" / "sequence.weights.json", max_shard_size=1e-6)
        if name == "convolutional":
            tf.saved_model.save(model, str(directory / "saved"))
            model.export(directory / "exported", verbose=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
