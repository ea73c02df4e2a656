"""Tensor names to layer groups, so that a scrape of a large model stays small: pure functions on names.

A group is a layer: the name up to and including its last number ("transformer.h.3.attn.weight" belongs to
"transformer.h.3"), or, without a number, up to the module that owns the tensor ("lm_head.weight" to "lm_head").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

GROUPS_MAX = 30
ROOT_GROUP = "(root)"  # tensors that belong to no module
_LAYER_WORDS_MAX = 8  # a name this deep is cut, whatever numbers come later


def layer_group(name: str) -> str:
    """Return the layer that a tensor belongs to.

    The first number in the name ends the group, since later ones count experts, heads or convolutions inside a
    layer; a name that starts with a number (a bare nn.Sequential) is grouped by it. Names without a number lose
    their last word, and a name of one word belongs to ROOT_GROUP.
    """
    words = name.replace("/", ".").split(".")
    for position, word in enumerate(words[:_LAYER_WORDS_MAX]):
        if word.isdecimal():
            return ".".join(words[: position + 1])
    if len(words) == 1:
        return ROOT_GROUP
    return ".".join(words[:-1][:_LAYER_WORDS_MAX])


def layer_groups(names: Iterable[str], groups_max: int = GROUPS_MAX) -> dict[str, str]:
    """Map every name to its group, at most `groups_max` (at least 1) groups for the whole checkpoint.

    Too many groups are made coarser in two steps that keep the order of depth, since "early, middle, late" is what
    one wants to know of a deep model: first names without a number go to their first word, then the layers of one
    stack are joined in blocks of equal length ("h.0-3", "h.4-7", ...), as short as the limit allows. If even one
    block a stack is too many, groups beyond the limit are joined into "(other)".
    """
    ordered = tuple(dict.fromkeys(names))
    fine = {name: layer_group(name) for name in ordered}
    if _n_groups(fine) <= groups_max:
        return fine
    coarse = {name: group if _layer_number(group) is not None else group.split(".")[0] for name, group in fine.items()}
    if _n_groups(coarse) <= groups_max:
        return coarse
    layers_max = max((number for group in coarse.values() if (number := _layer_number(group)) is not None), default=0)
    block = 2
    while block <= 2 * (layers_max + 1):
        blocks = {name: _block_name(group, block) for name, group in coarse.items()}
        if _n_groups(blocks) <= groups_max:
            return blocks
        block *= 2
    kept = set(tuple(dict.fromkeys(blocks.values()))[: groups_max - 1])
    return {name: group if group in kept else "(other)" for name, group in blocks.items()}


def _n_groups(groups: dict[str, str]) -> int:
    return len(set(groups.values()))


def _layer_number(group: str) -> int | None:
    last = group.rpartition(".")[2]
    return int(last) if last.isdecimal() and len(last) < 10 else None


def _block_name(group: str, block: int) -> str:
    number = _layer_number(group)
    if number is None:
        return group
    stack = group.rpartition(".")[0]
    first = number // block * block
    prefix = f"{stack}." if stack else ""
    return f"{prefix}{first}-{first + block - 1}"


def group_members(groups: dict[str, str]) -> list[tuple[str, Sequence[str]]]:
    """Return (group, its names) in the order in which groups first appear."""
    order = {group: position for position, group in enumerate(dict.fromkeys(groups.values()))}
    pairs = sorted(groups.items(), key=lambda pair: order[pair[1]])
    return [(group, [name for name, _ in members]) for group, members in groupby(pairs, key=lambda pair: pair[1])]
