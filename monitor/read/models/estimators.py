"""What a fitted scikit-learn estimator holds: its fitted attributes as named tensors, its numbers as scalars.

Fitted attributes end with an underscore; training data, private helpers and constructor defaults are left out. The
steps of a pipeline go by their names, the trees of a forest are joined into one tensor, and the optimizer of a network
gets the names that PyTorch's optimizers have, so that gradients can be estimated from it. Pure over inert nodes: where
values lie is for others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite

import numpy as np

from monitor.read.access.sources import MemorySource
from monitor.read.arrays.found_arrays import FoundArray
from monitor.read.arrays.numpy_records import ArrayDtype
from monitor.read.models.estimator_trees import Forest
from monitor.read.naming import (
    EPOCH_KEYS,
    STEP_KEYS,
    UniqueNames,
    as_epoch,
    as_step,
    joined,
    kind_of_flat_name,
    refine_kind,
)
from monitor.read.pickles.inert_nodes import Items, Node, Pairs, Ref
from monitor.read.pickles.inert_view import attributes_of, component, entries_of, text_keyed
from monitor.read.reader import LimitError, ReadLimits
from storage.records import TensorKind

VISITS_MAX = 5_000_000
DEPTH_MAX = 64

# Lists of (name, estimator) whose names say enough.
_NAMED_LISTS = frozenset({"steps", "transformers_", "transformer_list"})
# Fitted attributes that repeat others, or describe the fitting rather than what was fitted.
_LEFT_OUT = frozenset(
    {
        *("named_estimators_", "named_transformers_", "cv_results_", "random_state_", "rng", "estimator_"),
        *("estimator", "estimators", "base_estimator", "transformers"),  # templates, not fitted themselves
    }
)
_PRIVATE_KEPT = frozenset({"_optimizer", "_predictors", "_baseline_prediction"})
_HISTORIES = frozenset(
    {
        *("train_score_", "validation_score_", "validation_scores_", "loss_curve_", "oob_improvement_", "oob_scores_"),
        *("oob_decision_function_", "oob_prediction_", "feature_importances_", "n_iter_", "scores_", "pvalues_"),
        *("categories_", "classes_"),
    }
)
_SINGLE_PARAMETERS = frozenset({"intercept_", "offset_", "coef_", "bias_", "_baseline_prediction"})
_OPTIMIZER_SETTINGS = {
    "learning_rate": "lr",
    "beta_1": "betas.0",
    "beta_2": "betas.1",
    "epsilon": "eps",
    "momentum": "momentum",
}
_OPTIMIZER_PARTS = {"ms": "exp_avg", "vs": "exp_avg_sq", "velocities": "momentum_buffer"}

Find = Callable[[object], FoundArray | list[object] | None]


@dataclass(frozen=True, slots=True)
class NamedArray:
    """An array with its final name and kind; `problem` says why it has no values."""

    name: str
    kind: TensorKind
    array: FoundArray | None
    tied_to: str | None = None
    problem: str | None = None


@dataclass(slots=True)
class Estimated:
    """All arrays in order, the plain numbers by dotted path, and what the estimators say of step and epoch."""

    arrays: list[NamedArray] = field(default_factory=list)
    scalars: dict[str, float] = field(default_factory=dict)
    step: int | None = None
    epoch: float | None = None
    n_estimators: int = 0


def walk_estimators(root: object, find: Find, limits: ReadLimits) -> Estimated:
    """Walk everything from `root`; `find` turns a node into the array that it stands for.

    Raises LimitError beyond the limits of depth, visits or tensors.
    """
    walk = _Walk(find, limits)
    walk.visit("", root, "", 0)
    walk.finish()
    return walk.found


class _Walk:
    """The walk itself: one method a kind of thing."""

    __slots__ = ("_find", "_forests", "_limits", "_n_optimizers", "_names", "_seen", "_visits", "found")

    def __init__(self, find: Find, limits: ReadLimits) -> None:
        self._find = find
        self._limits = limits
        self._names = UniqueNames(limits.name_characters_max)
        self._seen: dict[int, str] = {}
        self._forests: dict[str, Forest] = {}
        self._n_optimizers = 0
        self._visits = 0
        self.found = Estimated()

    def visit(self, name: str, value: object, group: str, depth: int) -> None:
        """Take what is at `name`; `group` is the list of estimators that it is in, "" outside of one."""
        self._visits += 1
        if self._visits > VISITS_MAX:
            raise LimitError(f"the estimator has more than {VISITS_MAX} parts")
        if depth > DEPTH_MAX:
            raise LimitError(f"the estimator is nested deeper than {DEPTH_MAX} levels")
        if type(value) in (int, float, bool):
            self._take_number(name, value)
            return
        if value is None or isinstance(value, str | bytes | Ref):
            return
        found = value if isinstance(value, FoundArray) else self._find(value)
        if isinstance(found, FoundArray):
            self._take_array(name, found, id(value))
            return
        if id(value) in self._seen:
            return
        self._seen[id(value)] = name
        if isinstance(found, list):
            self._visit_list(name, found, group, depth)
        elif isinstance(value, list | tuple):
            self._visit_list(name, value, group, depth)
        elif isinstance(value, Items):
            self._visit_list(name, value.items, group, depth)
        elif isinstance(value, Pairs):
            self._visit_dict(name, value.pairs, group, depth)
        elif isinstance(value, Node):
            self._visit_object(name, value, group, depth)

    def finish(self) -> None:
        """Add the trees, each forest as one."""
        for forest in self._forests.values():
            for name, kind, array in forest.arrays():
                self._add(NamedArray(self._names.claim(name), kind, array))
            for name, number in forest.scalars().items():
                self._take_number(name, number)

    def _visit_list(self, name: str, values: list[object] | tuple[object, ...], group: str, depth: int) -> None:
        if values and all(type(value) in (int, float, bool, str) for value in values):
            return
        last = name.rpartition(".")[2]
        named = _named(values)
        if named is not None:
            above = name[: -len(last)].removesuffix(".") if last in _NAMED_LISTS else name
            for part, value in named:
                self.visit(self._below(above, part), value, "", depth + 1)
            return
        if values and all(self._is_number(value) for value in values):
            return
        inner_group = group if group and last.isdecimal() else name or "estimators"
        for index, value in enumerate(values):
            self.visit(self._below(name, str(index)), value, inner_group, depth + 1)

    def _is_number(self, value: object) -> bool:
        """Say whether a value is one of NumPy's numbers, as histories are made of."""
        array = value if isinstance(value, FoundArray) else self._find(value)
        return isinstance(array, FoundArray) and array.shape == ()

    def _visit_dict(self, name: str, pairs: list[tuple[object, object]], group: str, depth: int) -> None:
        if not name:
            self._take_progress(text_keyed(pairs))
        for key, value in pairs:
            part = component(key, self._limits.name_characters_max)
            self.visit(self._below(name, part), value, group, depth + 1)

    def _visit_object(self, name: str, node: Node, group: str, depth: int) -> None:
        entries = entries_of(node)
        if entries is not None:
            self._visit_dict(name, entries, group, depth)
            return
        function = node.function
        if isinstance(function, Ref) and function.module.startswith("torch."):
            problem = "a tensor of PyTorch within a plain pickle is not read; save it with torch.save"
            self._add(NamedArray(self._names.claim(name or "tensor"), TensorKind.OTHER, None, problem=problem))
            return
        attributes = text_keyed(attributes_of(node))
        if self._take_tree(name, node, attributes, group):
            return
        is_estimator = "_sklearn_version" in attributes or any(_is_fitted(key) for key in attributes)
        if group and is_estimator and isinstance(attributes.get("tree_"), Node):
            self.visit(self._below(name, "tree_"), attributes["tree_"], group, depth + 1)
            return
        self.found.n_estimators += is_estimator
        if is_estimator and group == "":
            self._take_training_progress(attributes)
        for key, value in attributes.items():
            if key == "_optimizer" and isinstance(value, Node):
                self._take_optimizer(text_keyed(attributes_of(value)))
            elif not is_estimator or self._is_wanted(key, value, in_list=bool(group)):
                self.visit(self._below(name, key), value, group, depth + 1)
        for index, value in enumerate(node.items or ()):
            self.visit(self._below(name, str(index)), value, group or name, depth + 1)

    def _is_wanted(self, key: str, value: object, *, in_list: bool) -> bool:
        """Say whether an attribute of an estimator is visited: what was fitted, numbers, and other estimators."""
        if key in _LEFT_OUT or key.startswith("_"):
            return key in _PRIVATE_KEPT
        if _is_fitted(key):
            return True
        if type(value) in (int, float):
            return not in_list  # the members of an ensemble repeat its numbers
        return isinstance(value, Node | list | tuple) and not isinstance(self._find(value), FoundArray)

    def _take_tree(self, name: str, node: Node, attributes: Mapping[str, object], group: str) -> bool:
        """Take the arrays of one tree; say whether the node was one."""
        class_name = _class_name(node)
        nodes = attributes.get("nodes")
        records = nodes if isinstance(nodes, FoundArray) else self._find(nodes)
        if class_name not in ("Tree", "TreePredictor") or not isinstance(records, FoundArray):
            return False
        values = attributes.get("values")
        value = values if isinstance(values, FoundArray) else self._find(values)
        base = name if not group else f"{group}.tree_" if class_name == "Tree" else group
        forest = self._forests.setdefault(base, Forest(base, is_single=not group))
        depth = attributes.get("max_depth")
        forest.add(records, value if isinstance(value, FoundArray) else None, depth if type(depth) is int else None)
        return True

    def _take_optimizer(self, state: Mapping[str, object]) -> None:
        """Name a network's optimizer state as PyTorch does: coefs_ first, then intercepts_, by number."""
        top = "optimizer" if self._n_optimizers == 0 else f"optimizer.{self._n_optimizers}"
        self._n_optimizers += 1
        step, n_parameters = as_step(self._number(state.get("t"))), 0
        for key, part in _OPTIMIZER_PARTS.items():
            values = state.get(key)
            for index, value in enumerate(values if isinstance(values, list | tuple) else ()):
                array = value if isinstance(value, FoundArray) else self._find(value)
                if isinstance(array, FoundArray) and array.dtype.plain is not None:
                    name = self._names.claim(f"{top}.state.{index}.{part}")
                    self._add(NamedArray(name, TensorKind.OPTIMIZER, array))
                    n_parameters = max(n_parameters, index + 1)
        for index in range(n_parameters if step is not None else 0):
            self._take_number(f"{top}.state.{index}.step", step)
        self._take_number(f"{top}.param_groups.0.params.length", n_parameters)
        for key, name in _OPTIMIZER_SETTINGS.items():
            self._take_number(f"{top}.param_groups.0.{name}", self._number(state.get(key)))
        if "velocities" in state:  # v = mu v - lr g
            self._take_number(f"{top}.param_groups.0.momentum_holds_lr", 1.0)
        if step is not None and self.found.step is None:
            self.found.step = step

    def _take_training_progress(self, attributes: Mapping[str, object]) -> None:
        """Keep what the first estimator that is trained in steps says: weight updates and passes over the data."""
        if self.found.epoch is not None or not {"_optimizer", "t_"} & attributes.keys():
            return
        self.found.epoch = as_epoch(self._number(attributes.get("n_iter_")))
        updates = self._number(attributes.get("t_"))
        if "_optimizer" not in attributes and isinstance(updates, int | float) and updates >= 1:
            self.found.step = as_step(float(updates) - 1)  # t_ counts from one

    def _take_progress(self, values: Mapping[str, object]) -> None:
        steps = (as_step(self._number(values.get(key))) for key in STEP_KEYS)
        self.found.step = next((step for step in steps if step is not None), None)
        epochs = (as_epoch(self._number(values.get(key))) for key in EPOCH_KEYS)
        self.found.epoch = next((epoch for epoch in epochs if epoch is not None), None)

    def _number(self, value: object) -> int | float | None:
        if type(value) in (int, float):
            assert isinstance(value, int | float)
            return value
        array = value if isinstance(value, FoundArray) else self._find(value)
        return array.number() if isinstance(array, FoundArray) else None

    def _take_number(self, name: str, value: object) -> None:
        if not isinstance(value, int | float):
            return
        last = name.rpartition(".")[2]
        if last in _SINGLE_PARAMETERS and type(value) is float:
            dtype = np.dtype("<f8")
            source = MemorySource(np.array(value, dtype).tobytes())
            array = FoundArray(dtype=ArrayDtype(item_bytes=8, plain=dtype), shape=(), is_fortran=False, source=source)
            self._add(NamedArray(self._names.claim(name), TensorKind.PARAMETER, array))
        elif name and isfinite(value) and len(self.found.scalars) < self._limits.scalars_max:
            self.found.scalars.setdefault(name, float(value))

    def _take_array(self, name: str, array: FoundArray, identity: int) -> None:
        if array.dtype.plain is None:
            return  # text, dates and records hold no weights
        last = name.rstrip("0123456789.").rpartition(".")[2]
        dtype = array.dtype.plain.newbyteorder("=").name
        if array.shape == () and name and last not in _SINGLE_PARAMETERS and last.endswith("_"):
            self._take_number(name, array.number())
            return
        tied_to = self._seen.get(identity)
        claimed = self._names.claim(name or "tensor")
        self._seen.setdefault(identity, claimed)
        kind = kind_of_flat_name(claimed, dtype, len(array.shape))
        if last in _HISTORIES:
            kind = TensorKind.OTHER
        elif last in _SINGLE_PARAMETERS:
            kind = refine_kind(claimed, dtype, 1, TensorKind.PARAMETER)
        self._add(NamedArray(claimed, kind, array, tied_to))

    def _add(self, named: NamedArray) -> None:
        if len(self.found.arrays) >= self._limits.tensors_max:
            raise LimitError(f"the checkpoint has more than {self._limits.tensors_max} tensors")
        self.found.arrays.append(named)

    def _below(self, name: str, part: str) -> str:
        return joined(name, part, self._limits.name_characters_max)


def _is_fitted(key: str) -> bool:
    return key.endswith("_") and not key.startswith("_") and not key.endswith("__")


def _class_name(node: Node) -> str:
    """Return the name of a node's class, which protocols 0 and 1 give as an argument; "" where it has none."""
    function = node.function
    if isinstance(function, Ref) and function.name == "_reconstructor" and isinstance(node.args, tuple) and node.args:
        function = node.args[0]
    return function.name if isinstance(function, Ref) else ""


def _named(values: list[object] | tuple[object, ...]) -> list[tuple[str, object]] | None:
    """Return the entries of a list of (name, estimator) or (name, estimator, columns), None for any other list."""
    named: list[tuple[str, object]] = []
    for value in values:
        if not isinstance(value, tuple) or len(value) not in (2, 3) or type(value[0]) is not str:
            return None
        named.append((value[0], value[1]))
    return named or None
