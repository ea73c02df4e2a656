"""Names and kinds of tensors: printable, unique, and equal for the same weights however they were wrapped.

Pure functions over text. It must not look at files or values.
"""

from __future__ import annotations

from storage.records import TensorKind

# A container at the top level that holds the model; its own name is left out of the parameter names.
MODEL_CONTAINERS = (
    "model",
    "state_dict",
    "model_state_dict",
    "net",
    "module",
    "model_state",
    "network",
    "net_state_dict",
    "params",
    "weights",
)
# Taken for the model only where no container above holds tensors (Ultralytics keeps its weights in `ema`).
AVERAGED_CONTAINERS = ("ema", "model_ema", "ema_state_dict", "state_dict_ema", "ema_model", "swa_model")
TRAINER_CONTAINERS = (
    "trainer",
    "trainer_state",
    "train_state",
    "training_state",
    "state",
    "extra_state",
    "meta",
    "metadata",
    "progress",
    "info",
)
STEP_KEYS = (
    "step",
    "global_step",
    "iter_num",
    "iteration",
    "num_steps",
    "current_step",
    "global_steps",
    "train_step",
    "training_step",
    "num_updates",
    "iter",
    "n_iter",
    "steps",
    "iterations",
)
EPOCH_KEYS = ("epoch", "current_epoch", "epoch_num", "num_epochs_done", "epochs_run")
_OTHER_WORDS = (
    "ema",
    "scheduler",
    "lr_sched",
    "scaler",
    "rng",
    "random",
    "seed",
    "loops",
    "callbacks",
    "hyper_parameters",
    "hparams",
    "config",
    "args",
    "dataloader",
    "sampler",
    "metrics",
    "history",
)
_BUFFER_NAMES = frozenset({"running_mean", "running_var", "num_batches_tracked"})
_COUNTER_NAMES = frozenset(
    {*STEP_KEYS, *EPOCH_KEYS, "lr", "learning_rate", "loss", "best_loss", "best_val_loss", "n_averaged"}
)
_NON_FLOAT_PREFIXES = ("int", "uint", "bool")

STEP_MAX = 2**62  # a step beyond this is no count of steps


def printable(text: str, characters_max: int) -> str:
    """Return `text` with control, bidirectional, surrogate and other unprintable characters escaped, and cut to length.

    A cut is shown by three dots at the end. Printable text within the length is returned as it is.
    """
    if len(text) <= characters_max and text.isprintable():
        return text
    cut = text[:characters_max]
    if not cut.isprintable():
        cut = "".join(c if c.isprintable() else _escaped(c) for c in cut)
    if len(text) > characters_max or len(cut) > characters_max:
        return cut[: max(characters_max - 3, 0)] + "..."[:characters_max]
    return cut


def _escaped(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def joined(prefix: str, component: str, characters_max: int) -> str:
    """Return the dotted path of `component` below `prefix`, printable and at most `characters_max` long."""
    return printable(f"{prefix}.{component}" if prefix else component, characters_max)


# A scalar that readers add where a format keeps no beta2 and the framework has one default: no fact of the file.
ASSUMED_BETA2 = "optimizer.assumed.beta2"
# Says that an optimizer keeps m = mu m - lr g, as Keras and scikit-learn do, and not the gradients alone.
MOMENTUM_HOLDS_RATE = "optimizer.param_groups.0.momentum_holds_lr"


class UniqueNames:
    """Hand out names so that none is given twice; the second bearer of a name gets a number."""

    __slots__ = ("_characters_max", "_next", "_taken")

    def __init__(self, characters_max: int) -> None:
        self._characters_max = characters_max
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}

    def claim(self, name: str, longer: str = "") -> str:
        """Return `name` if it is free, else `longer` if that is given and free, else `name#2`, `name#3` and so on."""
        name = printable(name, self._characters_max) or "(empty)"
        for candidate in (name, printable(longer, self._characters_max)):
            if candidate and candidate not in self._taken:
                self._taken.add(candidate)
                return candidate
        number = self._next.get(name, 2)
        while True:
            suffix = f"#{number}"
            candidate = name[: self._characters_max - len(suffix)] + suffix
            number += 1
            if candidate not in self._taken:
                self._next[name] = number
                self._taken.add(candidate)
                return candidate


def is_optimizer_key(key: str) -> bool:
    """Say whether a top-level key names an optimizer's state."""
    lower = key.lower()
    return "optim" in lower or lower in {"opt", "opt_state", "opt_states"}


def is_side_key(key: str) -> bool:
    """Say whether a top-level key names something that is neither model nor optimizer: a scheduler, random states."""
    lower = key.lower()
    return any(lower.startswith(word) or lower.endswith("_" + word) for word in _OTHER_WORDS)


def refine_kind(name: str, dtype: str, n_dimensions: int, kind: TensorKind) -> TensorKind:
    """Return the kind of a tensor that was taken for a parameter, judged by its last name and its dtype.

    Known buffer names, and integers and booleans (no optimizer trains them), are buffers; single numbers with the
    name of a counter or a learning rate are OTHER.
    """
    if kind is not TensorKind.PARAMETER:
        return kind
    last = name.rpartition(".")[2]
    if n_dimensions == 0 and last in _COUNTER_NAMES:
        return TensorKind.OTHER
    if last in _BUFFER_NAMES or dtype.startswith(_NON_FLOAT_PREFIXES):
        return TensorKind.BUFFER
    return kind


def kind_of_flat_name(name: str, dtype: str, n_dimensions: int) -> TensorKind:
    """Return the kind of a tensor in a flat file (safetensors, npz), where only names tell."""
    first, dot, _ = name.partition(".")
    if dot and is_optimizer_key(first):
        return TensorKind.OPTIMIZER
    return refine_kind(name, dtype, n_dimensions, TensorKind.PARAMETER)


def as_step(value: object) -> int | None:
    """Return a number as a step: whole, not negative, at most STEP_MAX; None otherwise."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int and 0 <= value <= STEP_MAX:
        return value
    return None


def as_epoch(value: object) -> float | None:
    """Return a number as an epoch: finite and not negative; None otherwise."""
    if type(value) in (int, float):
        assert isinstance(value, int | float)
        return float(value) if 0 <= value <= STEP_MAX else None
    return None
