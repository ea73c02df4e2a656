"""Which messages of one receiver go out as one. Pure.

Messages about one run become one message, an incident beside what belongs to none; in a storm, when many runs are in
trouble at once, everything that is due becomes a single digest. The order within a group is that of the outbox.
"""

from __future__ import annotations

from collections.abc import Sequence

from storage.records import AlertState, Notification

STORM_RUNS_MIN = 6  # so many incidents at once are one piece of news: the cluster, the storage, the shared code

Group = tuple[Notification, ...]


def grouped(due: Sequence[Notification], *, storm_runs_min: int = STORM_RUNS_MIN) -> list[Group]:
    """Return the groups in the order of their first message: one a run, or a single one in a storm."""
    by_run: dict[str, list[Notification]] = {}
    for notification in due:
        by_run.setdefault(notification.alert.run, []).append(notification)
    if len(by_run) >= storm_runs_min:
        return [tuple(due)]
    return [tuple(group) for group in by_run.values()]


def latest_of_each(group: Group) -> Group:
    """Return the last message of each conversation: what fired and is over again is only said to be over."""
    latest = {n.conversation: n for n in group}
    return tuple(latest.values())


def lead(group: Group) -> Notification:
    """Return the message that speaks for a group: of what still fires the most severe and first, else the first."""
    return min(group, key=lambda n: (n.alert.state is AlertState.RESOLVED, -n.alert.severity, n.id))
