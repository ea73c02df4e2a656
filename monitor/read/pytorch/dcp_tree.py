"""The state that torch.distributed.checkpoint flattened, as the tree it was, of inert nodes as in a file of torch.save.

So that a sharded checkpoint gives the same names, kinds, numbers and step as an unsharded one. Pure: it places what it
is given, reads nothing, and knows the spellings of flat names that frameworks use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from monitor.read.access.strided import contiguous_strides
from monitor.read.naming import is_optimizer_key
from monitor.read.pickles.inert_nodes import Node, Pairs, Persistent, Ref
from monitor.read.pickles.inert_view import entries_of, text_keyed
from monitor.read.pytorch.dcp_metadata import Path

# What optimizers keep for a parameter. Megatron writes it before the parameter's name, everybody else behind it.
_STATE_KEYS = frozenset(
    {
        *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "step", "fp32_param", "param", "master_param"),
        *("square_avg", "acc_delta", "sum", "grad_avg", "exp_inf"),
    }
)
_PARTS_MAX = 64
_SETTING_PARTS_MAX = 8
_COMMON = "common_state/shard_"  # the flat name under which Megatron saves what it does not slice
_CHAINED = re.compile(r"chained_\d+\.(?=optim)")


def tensor_node(key: str, dtype: str, shape: tuple[int, ...], n_bytes: int) -> Node:
    """Return what a pickle has for a contiguous tensor whose bytes are found under `key`."""
    storage = Persistent(("storage", Ref("torch", "UntypedStorage"), key, "cpu", n_bytes))
    args = (storage, 0, shape, contiguous_strides(shape), False, None, Ref("torch", dtype))
    return Node(Ref("torch._utils", "_rebuild_tensor_v3"), args)


class StateTree:
    """Nested dicts, filled by path; of two leaves with one path both are kept."""

    __slots__ = ("_groups", "_inner", "_steps", "root")

    def __init__(self) -> None:
        self.root = Pairs()
        self._inner: dict[Path, Pairs] = {(): self.root}
        self._steps: dict[str | int, object] = {}
        self._groups: dict[Path, dict[str, dict[str, object]]] = {}

    def put(self, path: Path, value: object) -> None:
        """Place a leaf, or a tree of nodes."""
        if isinstance(path[0], str) and path[0].startswith(_COMMON) and len(path) == 1:
            self.add(value)
            return
        path = _spelled_out(path)
        if len(path) > 3 and path[-3] == "param_groups" and isinstance(path[-2], str):
            self._groups.setdefault(path[:-2], {}).setdefault(path[-2], {})[str(path[-1])] = value
            return
        self._place(path, value)

    def add(self, root: object) -> None:
        """Place the entries at the top of another state that was saved beside this one.

        Megatron keeps the settings of its optimizer there, mostly within an optimizer within the optimizer.
        """
        for key, value in entries_of(root) or ():
            if not isinstance(key, str | int):
                continue
            optimizer = _inner_optimizer(value) if isinstance(key, str) and is_optimizer_key(key) else None
            if optimizer is None:
                self._place((key,), value)
                continue
            self._place((key, "param_groups"), optimizer["param_groups"])
            self._steps[key] = _common_step(optimizer)

    def finish(self) -> Pairs:
        """Return the root; what was kept per parameter or only once is given to whom it belongs.

        Settings per parameter are gathered into groups of parameters; a step that an optimizer keeps once goes to the
        state of each parameter.
        """
        for path, by_parameter in self._groups.items():
            self._place(path, _grouped(by_parameter))
        self._groups = {}
        for path, state in self._inner.items():
            step = self._steps.get(path[0]) if len(path) == 3 and path[1] == "state" else None
            if step is not None and "step" not in text_keyed(state.pairs):
                state.pairs.append(("step", step))
        return self.root

    def _place(self, path: Path, value: object) -> None:
        parent = self.root
        for n in range(1, len(path)):
            known = self._inner.get(path[:n])
            if known is None:
                known = self._inner[path[:n]] = Pairs()
                parent.pairs.append((path[n - 1], known))
            parent = known
        parent.pairs.append((path[-1], value))


def _spelled_out(path: Path) -> Path:
    """Return the path with what optimizers write as one flat name taken apart: (..., "state", parameter, key)."""
    if len(path) > _PARTS_MAX:
        return (".".join(str(part) for part in path),)
    first, last = path[0], path[-1]
    if isinstance(first, str) and len(path) == 1:
        name = _CHAINED.sub("", first)
        head, dot, rest = name.partition(".")
        if not dot or not is_optimizer_key(head):
            return path
        first, path, last = head, (head, rest), rest
    if not isinstance(first, str) or not is_optimizer_key(first) or not isinstance(last, str):
        return path
    section, _, rest = last.partition(".")
    if section not in ("state", "param_groups") or "." not in rest:
        return path
    parameter, _, key = rest.rpartition(".")
    before, _, behind = rest.partition(".")
    if section == "state" and before in _STATE_KEYS and key not in _STATE_KEYS:
        parameter, key = behind, before
    return (*path[:-1], section, parameter, key)


def _inner_optimizer(value: object) -> dict[str, object] | None:
    """Return the entries of an optimizer, or of the one within it, that has groups of parameters; None without any."""
    outer = text_keyed(entries_of(value) or [])
    for entries in (outer, text_keyed(entries_of(outer.get("optimizer")) or [])):
        if "param_groups" in entries:
            return entries
    return None


def _common_step(optimizer: Mapping[str, object]) -> object:
    """Return the step that is kept once for all parameters, as number or tensor; None where there is none."""
    common = text_keyed(entries_of(optimizer.get("state")) or []).get("common_step")
    if common is not None:
        return common
    groups = optimizer["param_groups"]
    steps = [text_keyed(entries_of(g) or []).get("step") for g in (groups if isinstance(groups, list) else [])]
    stated = {step for step in steps if type(step) is int}
    return stated.pop() if len(stated) == 1 else None


def _grouped(by_parameter: Mapping[str, Mapping[str, object]]) -> list[object]:
    """Return the groups of parameters that have the same settings, in order of their first parameter."""
    groups: dict[str, tuple[Mapping[str, object], list[object]]] = {}
    for parameter, settings in by_parameter.items():
        same = _text_of(settings)
        groups.setdefault(same, (settings, []))[1].append(parameter)
    made: list[object] = []
    for settings, parameters in groups.values():
        group = Pairs()
        group.pairs.extend((key, value) for key, value in settings.items())
        group.pairs.append(("params", parameters))
        made.append(group)
    return made


def _text_of(settings: Mapping[str, object]) -> str:
    """Return a text that is equal for equal settings; only numbers, text, and a few of them in a row are compared."""
    shown = []
    for key, value in sorted(settings.items()):
        parts = value if isinstance(value, tuple | list) and len(value) <= _SETTING_PARTS_MAX else (value,)
        shown.append((key, [part if type(part) in (int, float, bool, str) else None for part in parts]))
    return repr(shown)
