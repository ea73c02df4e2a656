"""Small data sets that come with scikit-learn or are made here: for batches by step, the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from sklearn import datasets

Batch = tuple[torch.Tensor, torch.Tensor]
Batches = Callable[[int], Batch]
"""From a step to its inputs and targets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Inputs (float32, mean 0, standard deviation 1) and targets: classes (int64) or numbers (float32, n x 1)."""

    inputs: np.ndarray
    targets: np.ndarray


@cache
def table(name: str) -> Table:
    """Return one of scikit-learn's tables: digits, iris, wine, breast_cancer or diabetes."""
    bunch = getattr(datasets, f"load_{name}")()
    inputs = np.asarray(bunch.data, np.float32)
    inputs = (inputs - inputs.mean(0)) / np.maximum(inputs.std(0), 1e-6)
    targets = np.asarray(bunch.target)
    if name == "diabetes":
        targets = ((targets - targets.mean()) / targets.std()).astype(np.float32)[:, None]
    return Table(inputs=inputs, targets=targets if name == "diabetes" else targets.astype(np.int64))


def rows(name: str, size: int, seed: int, *, shape: tuple[int, ...] | None = None) -> Batches:
    """Return random rows of a table in batches; `shape` is that of one input, flat without."""
    data = table(name)

    def batch(step: int) -> Batch:
        chosen = _random(seed, step).integers(0, len(data.inputs), size)
        inputs = torch.from_numpy(data.inputs[chosen])
        return (inputs if shape is None else inputs.reshape(size, *shape)), torch.from_numpy(data.targets[chosen])

    return batch


def images(size: int, seed: int) -> Batches:
    """Return digits as 1 x 8 x 8 images."""
    return rows("digits", size, seed, shape=(1, 8, 8))


def themselves(batches: Batches) -> Batches:
    """Return the inputs as targets, for an autoencoder."""
    return lambda step: (inputs := batches(step)[0], inputs)


def chains(size: int, length: int, vocabulary: int, seed: int) -> Batches:
    """Return sequences of a Markov chain whose next tokens are the targets; half of the tokens are rare."""
    likely = np.random.default_rng(7).dirichlet(np.full(vocabulary, 0.05), vocabulary)
    edges = np.cumsum(likely, axis=1)

    def batch(step: int) -> Batch:
        random = _random(seed, step)
        tokens = np.empty((size, length + 1), np.int64)
        tokens[:, 0] = random.integers(0, vocabulary, size)
        for place in range(length):
            draws = random.random((size, 1))
            tokens[:, place + 1] = np.minimum((edges[tokens[:, place]] < draws).sum(1), vocabulary - 1)
        return torch.from_numpy(tokens[:, :-1]), torch.from_numpy(tokens[:, 1:])

    return batch


def waves(size: int, length: int, seed: int) -> Batches:
    """Return noisy sine waves of random frequency; the target is the next value."""

    def batch(step: int) -> Batch:
        random = _random(seed, step)
        times = np.arange(length + 1)[None, :] * random.uniform(0.1, 0.6, (size, 1)) + random.uniform(0, 6, (size, 1))
        values = (np.sin(times) + 0.05 * random.standard_normal(times.shape)).astype(np.float32)
        return torch.from_numpy(values[:, :-1, None]), torch.from_numpy(values[:, -1:])

    return batch


def sums(size: int, length: int, seed: int) -> Batches:
    """Return random sequences whose marked two values are to be added: memory over many steps is needed."""

    def batch(step: int) -> Batch:
        random = _random(seed, step)
        values = random.random((size, length)).astype(np.float32)
        marks = np.zeros_like(values)
        for row, places in enumerate(np.argsort(random.random((size, length)), axis=1)[:, :2]):
            marks[row, places] = 1.0
        targets = (values * marks).sum(1, keepdims=True) - 1.0
        return torch.from_numpy(np.stack([values, marks], axis=2)), torch.from_numpy(targets)

    return batch


def bags(size: int, words: int, vocabulary: int, seed: int) -> Batches:
    """Return bags of words, most of them rare, and the topic (of four) that they come from."""
    popularity = 1.0 / np.arange(1, vocabulary + 1)
    topics = np.stack([np.roll(popularity, topic * vocabulary // 4) for topic in range(4)])
    edges = np.cumsum(topics / topics.sum(1, keepdims=True), axis=1)

    def batch(step: int) -> Batch:
        random = _random(seed, step)
        chosen = random.integers(0, 4, size)
        draws = random.random((size, words))
        tokens = np.stack([np.searchsorted(edges[t], row) for t, row in zip(chosen, draws, strict=True)])
        return torch.from_numpy(np.minimum(tokens, vocabulary - 1)), torch.from_numpy(chosen)

    return batch


def _random(seed: int, step: int) -> np.random.Generator:
    return np.random.default_rng((seed, step))
