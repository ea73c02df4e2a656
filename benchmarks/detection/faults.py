"""The faults: what goes wrong, where it can be injected, and whether theory says that checkpoints show it.

A fault changes the job after a sound checkpoint (or before the first step) and is left alone from then on. Whether it
is visible was decided from what a checkpoint holds, before any rule was asked.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.detection import sklearn_training
from benchmarks.detection.data import Batch
from benchmarks.detection.settings import Setting
from benchmarks.detection.training import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong.

    `needs` are traits of which a setting must have all, `spoils` those of which it must have none. `at_start`: struck
    before the first step, not in the middle. `unseen` is "", or why a checkpoint cannot show it.
    """

    name: str
    what: str
    strike: Callable[[Job], None]
    needs: frozenset[str] = frozenset()
    spoils: frozenset[str] = frozenset()
    at_start: bool = False
    unseen: str = ""

    def applies(self, setting: Setting) -> bool:
        """Say whether the setting has what the fault needs."""
        if "sklearn" in setting.traits and self.name not in sklearn_training.FAULTS:
            return False
        return self.needs <= setting.traits and not self.spoils & setting.traits


def nan_in_one_tensor(job: Job) -> None:
    name, _ = job.weights()[-1]

    def damage(payload: dict[str, Any]) -> None:
        payload["model"][name].view(-1)[3] = math.nan

    job.damage.append(damage)


def nan_loss(job: Job) -> None:
    _inputs(job, lambda inputs: inputs * math.nan)


def infinite_moment(job: Job) -> None:
    def damage(payload: dict[str, Any]) -> None:
        states = payload["optimizer"]["state"]
        next(iter(states.values()))["exp_avg_sq"].view(-1)[0] = math.inf

    job.damage.append(damage)


def rate_times_100(job: Job) -> None:
    job.rate_factor = 100.0


def rate_zero(job: Job) -> None:
    job.rate_factor = 0.0


def decay_with_wrong_sign(job: Job) -> None:
    def grow(job: Job) -> None:
        with torch.no_grad():
            for _, weight in job.weights():
                weight.mul_(1.02)

    job.after_step.append(grow)


def exploding_recurrent(job: Job) -> None:
    """The recurrent matrix is scaled so that a signal grows from step to step, and nothing clips any more."""
    job.clip = None
    with torch.no_grad():
        for name, weight in job.model.named_parameters():
            if "weight_hh" in name:
                weight.mul_(4.0 / torch.linalg.matrix_norm(weight.float(), 2))


def exploding_gradients(job: Job) -> None:
    job.clip = None
    job.before_step.append(lambda job: _scale_gradients(job, 1000.0))


def outliers(job: Job) -> None:
    _inputs(job, lambda inputs: inputs * 300.0)


def clipped_explosion(job: Job) -> None:
    """Gradients a thousand times larger; the clipping that was there all along hides how much."""
    job.before_step.append(lambda job: _scale_gradients(job, 1000.0))


def layer_frozen(job: Job) -> None:
    weights = [p for _, p in job.weights()]
    weights[len(weights) // 2].requires_grad_(False)


def layer_left_out(job: Job) -> None:
    layer_frozen(job)


def rate_below_precision(job: Job) -> None:
    job.rate_factor = 1e-3


def half_second_moment(job: Job) -> None:
    """What some export code did: the optimizer's state is cast to float16 when it is saved."""

    def damage(payload: dict[str, Any]) -> None:
        for state in payload["optimizer"]["state"].values():
            for part in ("exp_avg", "exp_avg_sq"):
                state[part] = state[part].half()

    job.damage.append(damage)


def dead_relus(job: Job) -> None:
    """The biases of the first layer with ReLUs behind it are driven so low that no unit is ever on."""
    linear = [m for m in job.model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.BatchNorm1d | nn.BatchNorm2d)]
    normed = [m for m in linear if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    with torch.no_grad():
        bias = (normed or linear)[0].bias
        assert bias is not None
        bias.sub_(100.0)


def normal_start(job: Job) -> None:
    """nn.init.normal_ without thinking: standard deviation 1 in every matrix."""
    with torch.no_grad():
        for _, weight in job.weights():
            weight.normal_()


def zero_start(job: Job) -> None:
    with torch.no_grad():
        for name, parameter in job.model.named_parameters():
            if parameter.ndim >= 2 or "bias" in name:
                parameter.zero_()


def other_model(job: Job) -> None:
    """The weights of another training of the same architecture are loaded on resuming."""
    other = copy.deepcopy(job.model)
    torch.manual_seed(job.seed + 999)
    for module in other.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-3)
    for step in range(50_000, 50_100):
        inputs, targets = job.batches(step)
        optimizer.zero_grad()
        job.loss(other(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    job.model.load_state_dict(other.state_dict())


def optimizer_lost(job: Job) -> None:
    job.optimizer.state.clear()


def exponent_bit(job: Job) -> None:
    """The highest exponent bit of one weight flips in memory: about 1e38 times its size."""
    _flip(job, 30)


def exponent_bit_in_file(job: Job) -> None:
    """The same, but only in what is saved; training goes on with the sound weight."""
    name, _ = job.weights()[0]

    def damage(payload: dict[str, Any]) -> None:
        _flip_in(payload["model"][name].view(-1), 30)

    job.damage.append(damage)


def low_exponent_bit(job: Job) -> None:
    """An exponent bit flips that makes a weight 16 times as large or as small: within what the tensor holds anyway."""
    _flip(job, 25)


def scale_collapse(job: Job) -> None:
    """Half precision overflows at every scale: the scaler halves its factor for ever and skips every step."""
    loss = job.loss
    job.loss = lambda outputs, targets: loss(outputs, targets) * math.inf


def zero_data(job: Job) -> None:
    _inputs(job, lambda inputs: inputs * 0.0)


def constant_data(job: Job) -> None:
    """A loader that hangs: the same batch over and over."""
    batch = job.batches(77)
    job.batches = lambda step: batch  # noqa: ARG005


def label_noise(job: Job) -> None:
    batches = job.batches

    def shuffled(step: int) -> Batch:
        inputs, targets = batches(step)
        return inputs, targets[torch.randperm(len(targets))]

    job.batches = shuffled


def no_warm_up(job: Job) -> None:
    schedule = job.schedule
    job.schedule = lambda step: max(schedule(step), schedule(100) if step < 100 else 0.0)


def layer_zeroed(job: Job) -> None:
    with torch.no_grad():
        job.weights()[-1][1].zero_()


def _inputs(job: Job, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    batches = job.batches

    def changed(step: int) -> Batch:
        inputs, targets = batches(step)
        return (change(inputs) if inputs.is_floating_point() else torch.zeros_like(inputs)), targets

    job.batches = changed


def _scale_gradients(job: Job, factor: float) -> None:
    for parameter in job.model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)


def _flip(job: Job, bit: int) -> None:
    weights = job.weights()
    _flip_in(weights[len(weights) // 2][1].detach().view(-1), bit)


def _flip_in(flat: torch.Tensor, bit: int) -> None:
    """Flip a bit of a weight of ordinary size; in one of 2 or more the highest exponent bit is set already."""
    sizes = flat.float().abs()
    place = int((sizes - sizes.median()).abs().argmin())
    if flat.dtype == torch.float32:
        flat.view(torch.int32)[place] ^= 1 << bit
    else:  # bfloat16: the upper half of a float32
        flat.view(torch.int16)[place] ^= 1 << (bit - 16)


def _fault(strike: Callable[[Job], None], what: str, **facts: Any) -> Fault:
    for key in ("needs", "spoils"):
        facts[key] = frozenset(facts.get(key, "").split())
    return Fault(name=strike.__name__, what=what, strike=strike, **facts)


_SAME_WITHOUT = (
    "nothing in a checkpoint says how the training was meant to be; until it diverges it looks like any other"
)

FAULTS: tuple[Fault, ...] = (
    _fault(nan_in_one_tensor, "one element of one saved tensor is NaN"),
    _fault(nan_loss, "the inputs turn NaN, and with them everything", spoils="amp table warm"),
    _fault(infinite_moment, "one element of Adam's second moment is infinite", needs="adam"),
    _fault(rate_times_100, "the learning rate is 100 times as high"),
    _fault(rate_zero, "the learning rate is 0"),
    _fault(decay_with_wrong_sign, "weight decay with the wrong sign: 2 % more with every step"),
    _fault(exploding_recurrent, "recurrent gradients explode, unclipped", needs="recurrent"),
    _fault(exploding_gradients, "gradients 1000 times as large, unclipped"),
    _fault(clipped_explosion, "gradients 1000 times as large, hidden by clipping", needs="clipped"),
    _fault(outliers, "inputs 300 times as large", spoils="table warm amp normed"),
    _fault(layer_frozen, "one layer stops training", spoils="frozen"),
    _fault(layer_left_out, "one inner layer never trains", at_start=True, needs="deep"),
    _fault(rate_below_precision, "updates smaller than bfloat16 can hold", needs="bf16"),
    _fault(half_second_moment, "Adam's moments are saved as float16", needs="adam", spoils="bf16"),
    _fault(dead_relus, "no ReLU of the first layer is ever on", needs="relu"),
    _fault(normal_start, "every matrix starts with standard deviation 1", at_start=True, spoils="frozen"),
    _fault(zero_start, "every matrix and bias starts with zeros", at_start=True, spoils="frozen"),
    _fault(other_model, "another training's weights are loaded on resuming", spoils="bf16 table"),
    _fault(optimizer_lost, "the optimizer starts anew on resuming", needs="adam"),
    _fault(exponent_bit, "the highest exponent bit of one weight flips", spoils="frozen"),
    _fault(exponent_bit_in_file, "the same, in the file alone"),
    _fault(scale_collapse, "the loss scale falls without end", needs="amp"),
    _fault(zero_data, "all inputs are zero", spoils="table warm frozen normed"),
    _fault(layer_zeroed, "the last matrix is overwritten with zeros"),
    _fault(
        low_exponent_bit,
        "an exponent bit flips that changes one weight by a factor of 16",
        unseen="one weight among thousands, of a size that others have: no statistic of a sound training differs",
    ),
    _fault(
        label_noise,
        "the labels are shuffled",
        unseen="weights follow random labels as readily as true ones; only a log of the loss can show it",
    ),
    _fault(no_warm_up, "the warm-up is missing", needs="warm", at_start=True, unseen=_SAME_WITHOUT),
    _fault(
        constant_data,
        "the loader returns the same batch for ever",
        unseen="gradients shrink as they do in any training that fits its data",
    ),
)
