"""Gradient estimates from the state of optimizers that are not Adam: what each one's memory says, and how surely.

Pure, standard library only. The same caveats hold as for Adam: gradients are those the optimizer saw. Each family of
which a checkpoint holds state, in the order of how much it tells:

- Adafactor keeps the mean of squares by row and column, v = b_t v + (1 - b_t) g^2 with b_t = 1 - t^d, d = -0.8. The sum
  of v is the number of elements times the mean of either. Windowed as Adam's.
- RMSprop and Adadelta keep v = a v + (1 - a) g^2 without a correction; the sum of its weights is 1 - a^t all the same.
- Adagrad keeps the plain sum of squares: the window's mean is exact and unweighted.
- Adamax keeps a decayed maximum of |g|, an upper bound.
- Ftrl's accumulator is Adagrad's sum.
- bitsandbytes keeps Adam's second moment of large tensors in 8 bits, v = code x (largest v of its block of 256), that
  of small ones as it is. No element is larger than the largest of its block: 256 times the sum of these is an upper
  bound, which rises and falls with the gradients.
- SGD's momentum b = mu b + (1 - tau) g and Lion's m = b2 m + (1 - b2) g hold sums, not sizes. For gradients that are
  mostly noise |g| is about sqrt(1 - mu^2) |b| / (1 - tau), and sqrt((1 + b2) / (1 - b2)) |m|; for gradients that all
  point one way it is less. A number to follow, not to believe in. Keras and scikit-learn keep m = mu m - lr g, which is
  divided by the learning rate as it is now.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from storage.records import GradientEstimate, TensorSummary

_PART = re.compile(
    r"^(?P<optimizer>optimizer(?:\.\d+)?)\.state\.(?P<key>.+?)\."
    r"(?P<part>exp_avg_sq_row|exp_avg_sq_col|row_var|col_var|variance|exp_avg_sq|square_avg|sum|exp_inf|"
    r"momentum_buffer|exp_avg|accumulator|state1|state2|(?:__bnb_optimizer_quant_state__\.)?absmax2)$"
)
_SLACK = 1e-5  # times the old sum: what rounding can do; below minus that, the state was replaced
_EXACT_STEPS_MAX = 20_000
_DECAY_RATE = -0.8
_GROUPS_MAX = 1000
_BLOCK_ELEMENTS = 256
_SETTINGS = (
    *("params.length", "alpha", "rho", "momentum", "dampening", "betas.1", "decay_rate", "beta2_decay", "lr"),
    "momentum_holds_lr",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """One parameter's state: its tensors by part, the numbers of its group, and the optimizer's count of steps."""

    name: str
    tensors: Mapping[str, TensorSummary]
    options: Mapping[str, float]
    step: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Memory:
    """A sum of squares with its memory: `kept(a, b)` is the part of the sum at step a that is left at step b."""

    name: str
    total: float
    step: int
    kept: Callable[[int, int], float]


def other_estimate(
    tensors: Iterable[TensorSummary],
    scalars: Mapping[str, float],
    reference_tensors: Iterable[TensorSummary] = (),
    reference_scalars: Mapping[str, float] | None = None,
) -> GradientEstimate | None:
    """Estimate the global gradient norm from the state of any optimizer but Adam, None where there is none to read.

    Sources: "adafactor", "rmsprop", "adagrad", each with "_window" over the steps since the reference or with "_ema"
    over the optimizer's memory; "adam_8bit_bound", "adamax_max", "sgd_momentum", "lion_momentum" over a memory of
    unknown length.
    """
    now = parts_of(tensors, scalars)
    old = {p.name: p for p in parts_of(reference_tensors, reference_scalars or {})}
    for source, memory in (("adafactor", _adafactor), ("rmsprop", _rmsprop), ("adagrad", _adagrad)):
        found = [m for p in now if (m := memory(p)) is not None and m.step > 0]
        if found:
            before = {m.name: m for p in old.values() if (m := memory(p)) is not None}
            return _of_squares(source, found, before)
    bounds = [b for p in now if (b := _adam_8bit(p)) is not None]
    if bounds and math.isfinite(square := math.fsum(bounds)):
        return GradientEstimate(norm=math.sqrt(square), source="adam_8bit_bound", window_steps=None)
    for source, norm in (("adamax_max", _adamax), ("sgd_momentum", _sgd), ("lion_momentum", _lion)):
        norms = [n for p in now if (n := norm(p)) is not None]
        if norms and math.isfinite(total := math.hypot(*norms)):
            return GradientEstimate(norm=total, source=source, window_steps=None)
    return None


def parts_of(tensors: Iterable[TensorSummary], scalars: Mapping[str, float]) -> list[Parts]:
    """Return the optimizer states among a checkpoint's tensors, in its own order; ties and unread ones left out."""
    by_name = {t.name: t for t in tensors}
    found: dict[tuple[str, str], dict[str, TensorSummary]] = {}
    for tensor in by_name.values():
        match = _PART.match(tensor.name)
        if match is not None and tensor.tied_to is None and tensor.problem is None:
            found.setdefault((match["optimizer"], match["key"]), {})[match["part"]] = tensor
    return [
        Parts(
            name=f"{optimizer}.state.{key}",
            tensors=held,
            options=_options(optimizer, key, scalars),
            step=_step(f"{optimizer}.state.{key}.step", f"{optimizer}.step", by_name, scalars),
        )
        for (optimizer, key), held in found.items()
    ]


def _options(optimizer: str, key: str, scalars: Mapping[str, float]) -> Mapping[str, float]:
    """Return the numbers of the group that holds a state; for a named state those that all groups agree on."""
    groups: list[dict[str, float]] = []
    for group in range(_GROUPS_MAX):
        prefix = f"{optimizer}.param_groups.{group}."
        numbers = {n: scalars[prefix + n] for n in _SETTINGS if prefix + n in scalars}
        if not numbers:
            break
        groups.append(numbers)
    if key.isdecimal() and len(groups) > 1:
        index = float(key)
        for numbers in groups:
            if index < numbers.get("params.length", 0.0):
                return numbers
            index -= numbers.get("params.length", 0.0)
        return {}
    first = groups[0] if groups else {}
    return {n: v for n, v in first.items() if all(g.get(n) == v for g in groups)}


def _step(name: str, shared: str, by_name: Mapping[str, TensorSummary], scalars: Mapping[str, float]) -> int | None:
    tensor = by_name.get(name)
    value = tensor.mean if tensor is not None and tensor.n_elements == 1 else scalars.get(name, scalars.get(shared))
    return int(value) if value is not None and value >= 0.0 and value == math.floor(value) else None


def _sum(tensor: TensorSummary | None) -> float | None:
    """Return the sum of a tensor that cannot be negative, None where it is or is not finite."""
    if tensor is None or tensor.n_nonfinite or (tensor.min is not None and tensor.min < 0.0):
        return None
    return tensor.norm_l1 if tensor.n_elements else 0.0


def _adafactor(parts: Parts) -> _Memory | None:
    held = parts.tensors
    rate = parts.options.get("decay_rate", parts.options.get("beta2_decay", _DECAY_RATE))
    row = held.get("exp_avg_sq_row", held.get("row_var"))
    column = held.get("exp_avg_sq_col", held.get("col_var"))
    if row is not None and column is not None and row.n_elements and column.shape:
        mean = _sum(row)
        total = None if mean is None else mean * column.shape[-1]
    elif {"decay_rate", "beta2_decay"} & parts.options.keys():
        total = _sum(held.get("variance", held.get("exp_avg_sq")))
    else:
        return None
    if total is None or parts.step is None or rate >= 0.0:
        return None
    return _Memory(name=parts.name, total=total, step=parts.step, kept=lambda a, b: _kept_by_adafactor(a, b, rate))


def _kept_by_adafactor(start: int, end: int, rate: float) -> float:
    """Return the product of 1 - t^rate over the steps after `start` up to `end`."""
    if start < 1:
        return 0.0  # the first step's weight is 1 - 1 = 0: nothing from before is left
    if end - start <= _EXACT_STEPS_MAX:
        return math.exp(math.fsum(math.log1p(-(float(t) ** rate)) for t in range(start + 1, end + 1)))
    power = rate + 1.0
    return math.exp(-(end**power - start**power) / power) if power else start / end


def _rmsprop(parts: Parts) -> _Memory | None:
    total, decay = _sum(parts.tensors.get("square_avg")), parts.options.get("alpha", parts.options.get("rho"))
    if total is None or decay is None or not 0.0 < decay < 1.0 or parts.step is None:
        return None
    return _Memory(name=parts.name, total=total, step=parts.step, kept=lambda a, b: decay ** (b - a))


def _adagrad(parts: Parts) -> _Memory | None:
    total = _sum(parts.tensors.get("sum", parts.tensors.get("accumulator")))
    if total is None or parts.step is None:
        return None
    return _Memory(name=parts.name, total=total, step=parts.step, kept=lambda a, b: 1.0)  # noqa: ARG005 - all is kept


def _of_squares(source: str, found: list[_Memory], old: Mapping[str, _Memory]) -> GradientEstimate | None:
    windows = [_window(m, old[m.name]) for m in found if m.name in old]
    if windows and len(windows) == len(found) and all(w is not None for w in windows):
        steps = max(m.step - old[m.name].step for m in found)
        norm = math.sqrt(math.fsum(w for w in windows if w is not None))
        if steps > 0 and math.isfinite(norm):
            return GradientEstimate(norm=norm, source=f"{source}_window", window_steps=steps)
    norm = math.sqrt(math.fsum(_mean(m.total, m.kept(0, m.step), m.step) for m in found))
    return GradientEstimate(norm=norm, source=f"{source}_ema", window_steps=None) if math.isfinite(norm) else None


def _window(new: _Memory, old: _Memory) -> float | None:
    """Return the mean of |g|^2 over the steps between, None when the older state is not an earlier one of it."""
    steps = new.step - old.step
    if steps < 0:
        return None
    kept = new.kept(old.step, new.step)
    fresh = new.total - kept * old.total
    if fresh < -_SLACK * old.total or (steps == 0 and fresh > _SLACK * old.total):
        return None
    return _mean(max(fresh, 0.0), kept, steps) if steps else 0.0


def _mean(total: float, kept: float, steps: int) -> float:
    """Return a sum over its weights: the number of steps where all is kept, else 1 - kept."""
    return total / steps if kept == 1.0 else total / (1.0 - kept)


def _norm(tensor: TensorSummary | None) -> float | None:
    return None if tensor is None or tensor.n_nonfinite else tensor.norm_l2


def _adamax(parts: Parts) -> float | None:
    return _norm(parts.tensors.get("exp_inf"))


def _sgd(parts: Parts) -> float | None:
    norm, momentum = _norm(parts.tensors.get("momentum_buffer")), parts.options.get("momentum")
    damping = parts.options.get("dampening", 0.0)
    if norm is None or momentum is None or not 0.0 <= momentum < 1.0 or not 0.0 <= damping < 1.0:
        return None
    rate = parts.options.get("lr", 0.0) if "momentum_holds_lr" in parts.options else 1.0
    return math.sqrt(1.0 - momentum**2) * norm / (1.0 - damping) / rate if rate > 0.0 else None


def _adam_8bit(parts: Parts) -> float | None:
    """Return the square of a bound on the gradient's norm from a second moment as bitsandbytes keeps it."""
    held, beta2 = parts.tensors, parts.options.get("betas.1")
    block_maxima = held.get("absmax2", held.get("__bnb_optimizer_quant_state__.absmax2"))
    if "state2" not in held or beta2 is None or not 0.0 <= beta2 < 1.0 or not parts.step:
        return None
    if block_maxima is not None:
        largest = _sum(block_maxima)
        total = None if largest is None else min(_BLOCK_ELEMENTS, held["state2"].n_elements) * largest
    else:
        total = _sum(held["state2"]) if held["state2"].dtype == "float32" else None
    return None if total is None else total / (1.0 - beta2**parts.step)


def _lion(parts: Parts) -> float | None:
    norm, beta2 = _norm(parts.tensors.get("exp_avg")), parts.options.get("betas.1")
    others = set(parts.tensors) - {"exp_avg"}
    if others or norm is None or beta2 is None or not 0.0 <= beta2 < 1.0:
        return None
    return math.sqrt((1.0 + beta2) / (1.0 - beta2)) * norm
