"""Train a small model with TF-Keras and save it as .h5, with both kinds of its optimizer and the true values beside.

TF-Keras cannot be one of the writers that the tests install: it asks for `tensorflow`, which fills the same folder as
`tensorflow-cpu` does. So its files are kept in tests/golden/tf_keras. To write them anew, unpack its wheel
(`pip download --no-deps tf-keras`) into a directory and run
`PYTHONPATH=DIRECTORY python tests/support/tf_keras_writer.py tests/golden/tf_keras`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras  # type: ignore[import-not-found, unused-ignore]
from tf_keras import layers, optimizers  # type: ignore[import-not-found, unused-ignore]

STEPS = 5


def trained(optimizer: Any) -> Any:
    """Return a model with a dense layer, batch normalisation and a recurrent layer after STEPS steps."""
    tf_keras.utils.set_random_seed(3)
    inputs = tf_keras.Input((4, 3))
    hidden = layers.LSTM(2, name="lstm")(inputs)
    hidden = layers.BatchNormalization(name="norm")(layers.Dense(4, name="hidden")(hidden))
    model = tf_keras.Model(inputs, layers.Dense(1, name="head")(hidden))
    model.compile(optimizer, "mse")
    chooser = np.random.default_rng(0)
    model.fit(chooser.random((8 * STEPS, 4, 3)), chooser.random((8 * STEPS, 1)), batch_size=8, epochs=1, verbose=0)
    return model


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    made = {
        "adam": optimizers.Adam(0.01, beta_2=0.98, jit_compile=False),
        "legacy_adam": optimizers.legacy.Adam(0.01, beta_2=0.98),
    }
    for name, optimizer in made.items():
        model = trained(optimizer)
        model.save(directory / f"{name}.h5", save_format="h5")
        truth = {variable.name: variable.numpy() for variable in model.variables}
        variables = optimizer.variables
        states = {variable.name: variable.numpy() for variable in (variables() if callable(variables) else variables)}
        np.savez(directory / f"{name}.npz", **truth, **{f"optimizer:{key}": value for key, value in states.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
