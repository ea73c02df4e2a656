"""Models of Keras converted to PyTorch by hand, rightly and wrongly, with proof that the right ones compute the same.

Run as `python tests/support/conversions.py DIRECTORY`: a process of its own, since the frameworks are large.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch
from keras import layers


def image() -> Any:
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, activation="relu")(inputs)
    x = layers.BatchNormalization(epsilon=1e-5)(x)
    x = layers.DepthwiseConv2D(2, activation="relu")(x)
    x = layers.Conv2D(4, 1)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(10, activation="relu")(x)
    x = layers.Dense(10, activation="relu")(x)
    model = keras.Model(inputs, layers.Dense(10)(x))
    model.compile("adam", "mse", run_eagerly=True)
    model.fit(np.random.rand(16, 8, 8, 3), np.random.rand(16, 10), epochs=1, verbose=0)
    return model


class Image(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, 6, 3),
            torch.nn.ReLU(),
            torch.nn.BatchNorm2d(6),
            torch.nn.Conv2d(6, 6, 2, groups=6),
            torch.nn.ReLU(),
            torch.nn.Conv2d(6, 4, 1),
        )
        self.head = torch.nn.Sequential(
            torch.nn.Linear(100, 10), torch.nn.ReLU(), torch.nn.Linear(10, 10), torch.nn.ReLU(), torch.nn.Linear(10, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.features(x.permute(0, 3, 1, 2)).flatten(1))
        return found


def convert_image(model: Any) -> Image:
    w = {v.path: torch.from_numpy(np.array(v)) for v in model.variables}
    made = Image().eval()
    f: Any = made.features
    h: Any = made.head
    with torch.no_grad():
        f[0].weight.copy_(w["conv2d/kernel"].permute(3, 2, 0, 1))
        f[0].bias.copy_(w["conv2d/bias"])
        f[2].weight.copy_(w["batch_normalization/gamma"])
        f[2].bias.copy_(w["batch_normalization/beta"])
        f[2].running_mean.copy_(w["batch_normalization/moving_mean"])
        f[2].running_var.copy_(w["batch_normalization/moving_variance"])
        f[3].weight.copy_(w["depthwise_conv2d/kernel"].permute(2, 3, 0, 1))
        f[3].bias.copy_(w["depthwise_conv2d/bias"])
        f[5].weight.copy_(w["conv2d_1/kernel"].permute(3, 2, 0, 1))
        f[5].bias.copy_(w["conv2d_1/bias"])
        flat = w["dense/kernel"].reshape(25, 4, 10).permute(2, 1, 0).reshape(10, 100)
        h[0].weight.copy_(flat)
        h[0].bias.copy_(w["dense/bias"])
        for place, name in ((2, "dense_1"), (4, "dense_2")):
            h[place].weight.copy_(w[f"{name}/kernel"].T)
            h[place].bias.copy_(w[f"{name}/bias"])
    x = np.random.rand(4, 8, 8, 3).astype(np.float32)
    np.testing.assert_allclose(made(torch.from_numpy(x)).detach(), model(x).numpy(), atol=1e-5)
    return made


def sequence() -> Any:
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(11, 4, name="words")(inputs)
    x = layers.LSTM(5, return_sequences=True, name="lstm")(x)
    x = layers.GRU(5, name="gru")(x)
    x = layers.LayerNormalization(name="norm", epsilon=1e-5)(x)
    model = keras.Model(inputs, layers.Dense(3, name="out")(x))
    model.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=True)
    model.fit(np.random.randint(0, 11, (32, 6)), np.random.rand(32, 3), epochs=2, verbose=0)
    return model


class Sequence(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(11, 4)
        self.lstm = torch.nn.LSTM(4, 5, batch_first=True)
        self.gru = torch.nn.GRU(5, 5, batch_first=True)
        self.norm = torch.nn.LayerNorm(5)
        self.out = torch.nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.out(self.norm(self.gru(self.lstm(self.words(x))[0])[0][:, -1]))
        return found


def _gates(values: torch.Tensor) -> torch.Tensor:
    """Turn update, reset, new of Keras into reset, update, new of PyTorch."""
    update, reset, new = values.chunk(3)
    return torch.cat([reset, update, new])


def convert_sequence(model: Any) -> Any:
    w = {v.path: torch.from_numpy(np.array(v)) for v in model.variables}
    made: Any = Sequence().eval()
    with torch.no_grad():
        made.words.weight.copy_(w["words/embeddings"])
        made.lstm.weight_ih_l0.copy_(w["lstm/lstm_cell/kernel"].T)
        made.lstm.weight_hh_l0.copy_(w["lstm/lstm_cell/recurrent_kernel"].T)
        made.lstm.bias_ih_l0.copy_(w["lstm/lstm_cell/bias"])
        made.lstm.bias_hh_l0.zero_()
        made.gru.weight_ih_l0.copy_(_gates(w["gru/gru_cell/kernel"].T))
        made.gru.weight_hh_l0.copy_(_gates(w["gru/gru_cell/recurrent_kernel"].T))
        made.gru.bias_ih_l0.copy_(_gates(w["gru/gru_cell/bias"][0]))
        made.gru.bias_hh_l0.copy_(_gates(w["gru/gru_cell/bias"][1]))
        made.norm.weight.copy_(w["norm/gamma"])
        made.norm.bias.copy_(w["norm/beta"])
        made.out.weight.copy_(w["out/kernel"].T)
        made.out.bias.copy_(w["out/bias"])
    x = np.random.randint(0, 11, (4, 6), dtype=np.int32)
    np.testing.assert_allclose(made(torch.from_numpy(x)).detach(), model(x).numpy(), atol=1e-5)
    return made


def main(directory: Path) -> None:
    keras.utils.set_random_seed(3)
    for build, convert in ((image, convert_image), (sequence, convert_sequence)):
        model = build()
        model.save(directory / f"{build.__name__}.keras")
        model.save_weights(directory / f"{build.__name__}.weights.h5")
        torch.save(convert(model).state_dict(), directory / f"{build.__name__}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
