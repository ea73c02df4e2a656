"""Run as a program: a model of Keras saved to one path again and again, without any pause.

`keras_saves.py PATH --saves N`: before save number I every weight, every state of the optimizer and the count of steps
is set to I; the ending of PATH tells Keras in what format to save. Every 20th save is loaded back. Prints one JSON
line: how many saves and loads failed, and how. A failed save does not end the program.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np

LOAD_EVERY = 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--saves", type=int, required=True)
    arguments = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)  # the older .h5 is called a legacy at every save
    path = str(arguments.path)
    layers = [keras.layers.Dense(40, name=f"dense_{n}") for n in range(4)]
    model = keras.Sequential([keras.Input((40,)), *layers])
    model.compile(keras.optimizers.Adam(1e-3), "mse", run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    states = [v for v in model.optimizer.variables if len(v.shape) > 0]
    errors: list[str] = []
    for number in range(arguments.saves):
        for variable in (*model.variables, *states):
            variable.assign(np.full(variable.shape, number, np.float32))
        model.optimizer.iterations.assign(number)
        try:
            save(model, path)
            if number % LOAD_EVERY == 0:
                load(model, path, number)
        except Exception as error:
            errors.append(f"save {number}: {type(error).__name__}: {error}")
    print(json.dumps({"n_failures": len(errors), "errors": errors[:5]}))


def save(model: Any, path: str) -> None:
    if path.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)


def load(model: Any, path: str, number: int) -> None:
    if path.endswith(".weights.h5"):
        model.load_weights(path)
    else:
        model = keras.models.load_model(path, compile=False)
    for variable in model.variables:
        assert np.all(np.asarray(variable) == number), f"{variable.path} was not saved as it was"


if __name__ == "__main__":
    main()
