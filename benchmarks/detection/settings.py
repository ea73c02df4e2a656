"""The sound trainings: models, data, optimizers and schedules as they are used, one setting a function.

A setting that is held out was never looked at while thresholds were chosen; the results keep both halves apart.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from sklearn.neural_network import MLPClassifier, MLPRegressor
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.detection import data, models
from benchmarks.detection.sklearn_training import Estimator
from benchmarks.detection.training import Job, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One kind of training, from a seed. `traits` say what a fault needs: "adam", "relu", "recurrent", "bf16" ..."""

    name: str
    build: Callable[[int], Job | Estimator]
    plan: Plan
    traits: frozenset[str]
    held_out: bool = False


def constant(_step: int) -> float:
    """Return the factor of a rate that stays."""
    return 1.0


def warm_cosine(step: int, *, warm: int, total: int) -> float:
    """Return the factor of a linear warm-up that is followed by half a cosine down to a tenth."""
    if step <= warm:
        return step / warm
    return 0.1 + 0.45 * (1.0 + math.cos(math.pi * min((step - warm) / (total - warm), 1.0)))


def restarts(step: int, *, period: int) -> float:
    """Return the factor of a cosine with warm restarts."""
    return 0.01 + 0.495 * (1.0 + math.cos(math.pi * ((step - 1) % period) / period))


def stairs(step: int, *, every: int) -> float:
    """Return the factor of a rate that falls to a tenth every so many steps."""
    return float(0.1 ** (step // every))


def one_cycle(step: int, *, total: int) -> float:
    """Return the factor of a rate that rises from a twentieth for a third of the training, then falls to nothing."""
    rise = 0.3 * total
    if step <= rise:
        return 0.05 + 0.95 * 0.5 * (1.0 - math.cos(math.pi * step / rise))
    return max(0.5 * (1.0 + math.cos(math.pi * (step - rise) / (total - rise))), 1e-4)


def _classes(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.float(), targets)


def _numbers(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.mse_loss(outputs.float(), targets)


def mlp_digits(seed: int) -> Job:
    model = models.mlp((64, 128, 64, 10))
    return Job(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        batches=data.rows("digits", 32, seed),
        loss=_classes,
        seed=seed,
    )


def mlp_wine(seed: int) -> Job:
    model = models.mlp((13, 64, 64, 3), activation=nn.Tanh)
    return Job(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4),
        batches=data.rows("wine", 16, seed),
        loss=_classes,
        schedule=partial(stairs, every=150),
        seed=seed,
    )


def cnn_digits(seed: int) -> Job:
    model = models.cnn(dropout=0.2)
    return Job(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
        batches=data.images(32, seed),
        loss=_classes,
        schedule=partial(warm_cosine, warm=60, total=600),
        seed=seed,
    )


def transformer_chains(seed: int) -> Job:
    model = models.Transformer(64, 32, 2, 24, tied=True)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    return Job(
        model=model,
        optimizer=torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
            lr=3e-3,
            betas=(0.9, 0.95),
        ),
        batches=data.chains(8, 24, 64, seed),
        loss=_classes,
        schedule=partial(warm_cosine, warm=40, total=450),
        clip=1.0,
        accumulate=2,
        seed=seed,
    )


def lstm_waves(seed: int) -> Job:
    model = models.Recurrent(nn.LSTM, 1, 32)
    return Job(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=3e-3),
        batches=data.waves(16, 24, seed),
        loss=_numbers,
        clip=1.0,
        seed=seed,
    )


def mlp_bf16(seed: int) -> Job:
    model = models.mlp((30, 64, 64, 2), dropout=0.1).bfloat16()
    rows = data.rows("breast_cancer", 32, seed)

    def batches(step: int) -> data.Batch:
        inputs, targets = rows(step)
        return inputs.bfloat16(), targets

    return Job(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99)),
        batches=batches,
        loss=_classes,
        seed=seed,
    )


def mlp_amp(seed: int) -> Job:
    model = models.mlp((64, 96, 96, 10))
    return Job(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        batches=data.rows("digits", 32, seed),
        loss=_classes,
        autocast=torch.float16,
        scaler=torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=100),
        seed=seed,
    )


def bag_of_words(seed: int) -> Job:
    # Said aloud, where Adagrad would warn that nobody did.
    torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
    model = models.Bag(800, 24, sparse=True)
    return Job(
        model=model,
        optimizer=torch.optim.Adagrad(model.parameters(), lr=0.05),
        batches=data.bags(16, 12, 800, seed),
        loss=_classes,
        seed=seed,
    )


def fine_tuning(seed: int) -> Job:
    model = models.mlp((64, 128, 128, 10))
    early = torch.optim.AdamW(model.parameters(), lr=1e-3)
    first = Job(model=model, optimizer=early, batches=data.rows("digits", 32, 1000 + seed), loss=_classes)
    for step in range(1, 101):
        inputs, targets = first.batches(step)
        early.zero_grad()
        _classes(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        early.step()
    for layer in list(model)[:-1]:
        layer.requires_grad_(False)
    return Job(
        model=model,
        optimizer=torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4),
        batches=data.rows("digits", 32, seed),
        loss=_classes,
        schedule=partial(warm_cosine, warm=30, total=300),
        seed=seed,
    )


def warm_restarts(seed: int) -> Job:
    model = models.mlp((10, 96, 96, 1))
    return Job(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=2e-3),
        batches=data.rows("diabetes", 32, seed),
        loss=_numbers,
        schedule=partial(restarts, period=160),
        seed=seed,
    )


def weights_only(seed: int) -> Job:
    model = models.mlp((30, 48, 48, 2), normed=True)
    return Job(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        batches=data.rows("breast_cancer", 32, seed),
        loss=_classes,
        seed=seed,
    )


def gru_sums(seed: int) -> Job:
    model = models.Recurrent(nn.GRU, 2, 48)
    return Job(
        model=model,
        optimizer=torch.optim.RMSprop(model.parameters(), lr=1e-3),
        batches=data.sums(32, 16, seed),
        loss=_numbers,
        clip=5.0,
        seed=seed,
    )


def rnn_relu(seed: int) -> Job:
    model = models.Recurrent(nn.RNN, 2, 40, relu=True)
    return Job(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        batches=data.sums(32, 20, seed),
        loss=_numbers,
        clip=1.0,
        seed=seed,
    )


def residual_one_cycle(seed: int) -> Job:
    model = models.ResidualNet()
    return Job(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05),
        batches=data.images(32, seed),
        loss=_classes,
        schedule=partial(one_cycle, total=450),
        seed=seed,
    )


def autoencoder(seed: int) -> Job:
    model = models.mlp((64, 48, 12, 48, 64), activation=nn.GELU)
    return Job(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=2e-3, betas=(0.9, 0.99)),
        batches=data.themselves(data.rows("digits", 32, seed)),
        loss=_numbers,
        average=copy.deepcopy(model),
        seed=seed,
    )


def post_norm(seed: int) -> Job:
    model = models.Transformer(48, 32, 3, 16, tied=False, post=True)
    return Job(
        model=model,
        optimizer=torch.optim.NAdam(model.parameters(), lr=1e-3),
        batches=data.chains(12, 16, 48, seed),
        loss=_classes,
        schedule=partial(warm_cosine, warm=100, total=600),
        clip=1.0,
        seed=seed,
    )


def patches(seed: int) -> Job:
    model = models.PatchTransformer()
    return Job(
        model=model,
        optimizer=torch.optim.RAdam(model.parameters(), lr=1e-3),
        batches=data.images(32, seed),
        loss=_classes,
        seed=seed,
    )


def adapters(seed: int) -> Job:
    model = models.mlp((64, 128, 128, 10))
    early = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rows = data.rows("digits", 32, 2000 + seed)
    for step in range(1, 81):
        inputs, targets = rows(step)
        early.zero_grad()
        _classes(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        early.step()
    tuned = nn.Sequential(*(models.Adapter(m) if isinstance(m, nn.Linear) else m for m in model))
    return Job(
        model=tuned,
        optimizer=torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=2e-3),
        batches=data.rows("digits", 32, seed),
        loss=_classes,
        seed=seed,
    )


def wide_sgd(seed: int) -> Job:
    model = models.mlp((4, 256, 3))
    return Job(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.02),
        batches=data.rows("iris", 16, seed),
        loss=_classes,
        seed=seed,
    )


def sklearn_wine(seed: int) -> Estimator:
    model = MLPClassifier((48, 48), learning_rate_init=2e-3, random_state=seed)
    return Estimator(model=model, table=data.table("wine"), batch_size=32, seed=seed)


def sklearn_diabetes(seed: int) -> Estimator:
    model = MLPRegressor(hidden_layer_sizes=(64,), solver="sgd", learning_rate_init=5e-3, random_state=seed)
    return Estimator(model=model, table=data.table("diabetes"), batch_size=32, seed=seed)


def _setting(
    build: Callable[[int], Job | Estimator], plan: Plan, traits: str, *, held_out: bool = False, name: str | None = None
) -> Setting:
    return Setting(
        name=name or build.__name__, build=build, plan=plan, traits=frozenset(traits.split()), held_out=held_out
    )


SETTINGS: tuple[Setting, ...] = (
    _setting(mlp_digits, Plan(save_every=25, log=True), "adam relu log wide deep"),
    _setting(mlp_wine, Plan(save_every=10), "sgd deep"),
    _setting(cnn_digits, Plan(save_every=20, log=True), "sgd relu log"),
    _setting(transformer_chains, Plan(save_every=15, log=True), "adam warm log deep"),
    _setting(lstm_waves, Plan(save_every=20), "adam recurrent clipped"),
    _setting(mlp_bf16, Plan(save_every=20), "adam bf16 relu"),
    _setting(mlp_amp, Plan(save_every=25), "adam amp relu deep"),
    _setting(bag_of_words, Plan(save_every=30), "adagrad table"),
    _setting(fine_tuning, Plan(save_every=10), "adam frozen"),
    _setting(warm_restarts, Plan(save_every=20, log=True), "adam relu log deep"),
    _setting(weights_only, Plan(save_every=20, writer="weights"), "weights relu normed"),
    _setting(mlp_digits, Plan(save_every=25, resume_at=12, resume_back=3), "adam relu resumed", name="resumed_back"),
    _setting(sklearn_wine, Plan(save_every=20), "sklearn adam relu"),
    _setting(gru_sums, Plan(save_every=20), "rmsprop recurrent", held_out=True),
    _setting(rnn_relu, Plan(save_every=15, log=True), "adam recurrent log clipped", held_out=True),
    _setting(residual_one_cycle, Plan(save_every=15), "adam", held_out=True),
    _setting(autoencoder, Plan(save_every=30), "adam averaged deep", held_out=True),
    _setting(post_norm, Plan(save_every=20, log=True), "adam warm log deep", held_out=True),
    _setting(patches, Plan(save_every=12), "adam deep", held_out=True),
    _setting(adapters, Plan(save_every=15), "adam frozen", held_out=True),
    _setting(wide_sgd, Plan(save_every=40, writer="weights"), "weights relu", held_out=True),
    _setting(sklearn_diabetes, Plan(save_every=15), "sklearn sgd relu", held_out=True),
)


def by_name(names: Iterable[str]) -> list[Setting]:
    """Return the settings of these names; raise KeyError for one that there is not."""
    table = {setting.name: setting for setting in SETTINGS}
    return [table[name] for name in names]
