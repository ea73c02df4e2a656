"""The small models of the benchmark: ordinary modules, as a tutorial would write them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(
    widths: Sequence[int],
    *,
    activation: type[nn.Module] = nn.ReLU,
    dropout: float = 0.0,
    normed: bool = False,
) -> nn.Sequential:
    """Return linear layers with an activation between them, and BatchNorm and dropout where asked for."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers.append(nn.Linear(inputs, outputs))
        layers += [nn.BatchNorm1d(outputs)] if normed else []
        layers += [activation()]
        layers += [nn.Dropout(dropout)] if dropout else []
    last = max(place for place, layer in enumerate(layers) if isinstance(layer, nn.Linear))
    return nn.Sequential(*layers[: last + 1])


def cnn(*, dropout: float = 0.0) -> nn.Sequential:
    """Return a convolutional classifier of 8 x 8 images with BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, stride=2, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(24 * 16, 10),
    )


class ResidualNet(nn.Module):
    """Two residual blocks with GroupNorm over a stem."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(4, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False))
            for _ in range(2)
        )
        self.head = nn.Linear(channels, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.stem(inputs)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.head(hidden.mean((2, 3)))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Causal transformer over tokens, output layer tied to the embedding on request; "post" puts norms behind."""

    def __init__(
        self, vocabulary: int, width: int, layers: int, length: int, *, tied: bool, post: bool = False
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=not post)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)
        hidden = self.tokens(tokens) + self.positions(torch.arange(length))
        for layer in self.layers:
            hidden = layer(hidden, src_mask=mask.to(hidden.dtype))
        return self.head(self.norm(hidden)).transpose(1, 2)  # type: ignore[no-any-return]


class PatchTransformer(nn.Module):
    """A small vision transformer over the four quarters of a digit."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 4, stride=4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.1, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        patches = self.patch(inputs).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(inputs), -1, -1), patches], 1) + self.pos_embed
        return self.head(self.encoder(tokens)[:, 0])  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """A recurrent layer and a linear one over its last state; a plain RNN with ReLU begins with the identity."""

    def __init__(self, cell: type[nn.RNNBase], inputs: int, width: int, *, layers: int = 1, relu: bool = False) -> None:
        super().__init__()
        extra = {"nonlinearity": "relu"} if relu else {}
        self.rnn = cell(inputs, width, layers, batch_first=True, **extra)  # type: ignore[arg-type]
        if relu:
            nn.init.eye_(self.rnn.weight_hh_l0)  # type: ignore[arg-type]
        self.head = nn.Linear(width, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.rnn(inputs)[0][:, -1])  # type: ignore[no-any-return]


class Bag(nn.Module):
    """The mean of word embeddings, and two linear layers."""

    def __init__(self, vocabulary: int, width: int, *, sparse: bool) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(vocabulary, width, mode="mean", sparse=sparse)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.words(tokens))))  # type: ignore[no-any-return]


class Adapter(nn.Module):
    """A frozen linear layer with a low-rank adapter that begins at zero."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(rank, base.in_features) / rank)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.base(inputs) + inputs @ self.lora_A.T @ self.lora_B.T  # type: ignore[no-any-return]
