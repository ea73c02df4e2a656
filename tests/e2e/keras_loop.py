"""Run as a program: a training by Keras that saves after every epoch of a few steps.

`keras_loop.py OUTPUT TRUTH --mode MODE --saves N --hasty-saves M`: before each of the first N saves, and once before
the M that follow, it waits for a line on its standard input. MODE is `weights` (ModelCheckpoint with a file for each
epoch), `keras` (ModelCheckpoint that overwrites one archive) or `manager` (tf.train.CheckpointManager that keeps two).
Of each save it writes TRUTH/STEP.json. Exits with 0 only when nothing went wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.support.training import SAVE_EVERY
from tests.support.truths import write_truth


class Pace(keras.callbacks.Callback):  # type: ignore[misc]
    """Wait before epochs, and note the truth after their saves."""

    def __init__(self, truth: Path, n_paced: int) -> None:
        super().__init__()
        self.truth = truth
        self.n_paced = n_paced

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch <= self.n_paced and not sys.stdin.readline():
            raise SystemExit("nobody says when to go on")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        step = int(self.model.optimizer.iterations)
        write_truth(self.truth, step, {v.path: np.asarray(v.value) for v in self.model.variables})


class Managed(keras.callbacks.Callback):  # type: ignore[misc]
    """Save with TensorFlow's own manager after every epoch."""

    def __init__(self, output: Path, model: Any) -> None:
        super().__init__()
        checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
        self.manager = tf.train.CheckpointManager(checkpoint, str(output), max_to_keep=2)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.manager.save()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--mode", choices=["weights", "keras", "manager"], required=True)
    parser.add_argument("--saves", type=int, required=True)
    parser.add_argument("--hasty-saves", type=int, required=True)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(1)
    inputs = keras.Input((12,))
    hidden = keras.layers.Dense(30, activation="relu", name="hidden")(inputs)
    hidden = keras.layers.BatchNormalization(name="norm")(hidden)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(hidden))
    model.compile(keras.optimizers.Adam(1e-3, beta_2=0.99), "mse", run_eagerly=True)
    saver: Any = Managed(arguments.output, model)
    if arguments.mode == "weights":
        saver = keras.callbacks.ModelCheckpoint(
            arguments.output / "epoch-{epoch:02d}.weights.h5", save_weights_only=True
        )
    elif arguments.mode == "keras":
        saver = keras.callbacks.ModelCheckpoint(arguments.output / "model.keras")
    n_samples = SAVE_EVERY * 8
    chooser = np.random.default_rng(0)
    model.fit(
        chooser.standard_normal((n_samples, 12)),
        chooser.standard_normal((n_samples, 2)),
        batch_size=8,
        epochs=arguments.saves + arguments.hasty_saves,
        verbose=0,
        callbacks=[saver, Pace(arguments.truth, arguments.saves)],
    )


if __name__ == "__main__":
    main()
