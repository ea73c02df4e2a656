"""How deep a tree is, from the children of its nodes; pure."""

from __future__ import annotations

from collections.abc import Sequence

from monitor.read.reader import CorruptError


def depth_of(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the number of steps from node 0 to its deepest descendant; negative children are leaves or none.

    Raises CorruptError where a child is outside of the tree, or has two parents.
    """
    n = min(len(left), len(right))
    depth, level, n_seen = 0, [0] if n else [], 0
    while True:
        n_seen += len(level)
        if n_seen > n:
            raise CorruptError("a tree has a node with two parents")
        below = [child for node in level for child in (left[node], right[node])]
        level = [child for child in below if child >= 0]
        if any(child >= n for child in level):
            raise CorruptError("a tree has a child that is not there")
        if not level:
            return depth
        depth += 1
