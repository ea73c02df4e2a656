"""Models of Keras and TensorFlow, trained, measured in memory and saved; what was measured goes beside the files.

Run as `python tests/support/live_models.py DIRECTORY`: a process of its own, since the framework is large. For every
file FILE it writes FILE.json: what `monitor.live.measure` says of the object that was saved.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from monitor.live import diff, measure
from monitor.measure.codec import measured_to_json
from tests.support import keras_writer
from tests.support.conversions import convert_image, image


def keep(path: Path, *measured: Any) -> None:
    Path(f"{path}.json").write_text(json.dumps(measured_to_json(measure(*measured))))


def main(directory: Path) -> None:
    keras.utils.set_random_seed(5)
    for build in (keras_writer.convolutional, keras_writer.sequence, keras_writer.subclassed, keras_writer.mixed):
        model = build()
        path = directory / f"{build.__name__}.keras"
        model.save(path)
        keep(path, model, model.optimizer)
        path = directory / f"{build.__name__}.tf"
        checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer, step=tf.Variable(42, dtype=tf.int64))
        checkpoint.write(str(path))
        keep(path, checkpoint)
    named = [tf.Variable(np.arange(6.0).reshape(2, 3), name="first"), tf.Variable([1, 2], name="second")]
    keep(directory / "variables", named)
    module = tf.Module()
    module.w = tf.Variable([[1.0, 2.0]], dtype=tf.bfloat16)
    module.parts = [tf.Variable([3.0]), tf.Variable("text")]
    keep(directory / "module", module)
    keras.utils.clear_session()  # names count from the start again
    model = image()
    right = diff(model, convert_image(model))
    (directory / "identical.json").write_text(json.dumps([right.identical, len(right.tensors)]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
