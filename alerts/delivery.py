"""From the outbox to the receivers: at least once, in order for each alert, and patiently when a receiver is down.

One thread a notifier, so that a slow receiver delays no other. The state of every message is in the database: sent
first and marked after, so that a crash between the two sends a message again and never loses one. Messages about one
run that are due together go out as one. It judges nothing and knows no protocol.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alerts.digest import compose_group
from alerts.grouping import STORM_RUNS_MIN, Group, grouped, lead
from alerts.message import compose
from alerts.notifier import DeliveryError, Message, Notifier, Resending, joins, printable, shows_pictures
from storage import queries, telling, writer
from storage.failpoints import reach
from storage.records import Alert, Notification

if TYPE_CHECKING:
    from storage.database import Database

BATCH_MESSAGES_MAX = 100
ELSEWHERE_SECONDS = 5.0  # after which it is asked again whether another daemon still sends
RESEND_RESOLVED_SECONDS = 300.0  # after which Alertmanager has forgotten an alert by itself
ERROR_CHARACTERS_MAX = 500

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryPolicy:
    """How patient delivery is.

    The n-th failed try of a message is followed by a pause of `backoff_seconds_min` * 2^(n-1) times a random factor
    between 0.5 and 1.5, at most `backoff_seconds_max`; a receiver that asks for a longer one gets it. A message is dead
    after `give_up_seconds`, but not before it was tried `give_up_tries_min` times, so that one which waited while the
    daemon was off gets its chance. After `failures_in_row_max` failed messages in a row the receiver is taken to be
    down, and the others wait as well. `idle_seconds_max` is how long a thread sleeps without being woken. When messages
    about `storm_runs_min` or more runs are due at once, all of them become one digest.
    """

    backoff_seconds_min: float = 1.0
    backoff_seconds_max: float = 300.0
    give_up_seconds: float = 24 * 3600.0
    give_up_tries_min: int = 10
    failures_in_row_max: int = 3
    idle_seconds_max: float = 30.0
    storm_runs_min: int = STORM_RUNS_MIN


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageExtras:
    """What a message shows beside what the outbox holds.

    `link_of` gives the address of a run's page, None where none is configured. `picture_of` draws what an alert is
    about as a PNG, None where there is nothing to draw; it is asked only for notifiers that show pictures.
    """

    link_of: Callable[[str], str | None] = lambda _: None
    picture_of: Callable[[Alert], bytes | None] = lambda _: None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryResult:
    """One try of one message: `error` is None when it was sent; `dead` when it will not be tried again."""

    notifier: str
    notification_id: int
    reason: str
    error: str | None
    dead: bool
    at: float


class Delivery:
    """Sends what is due. `start` it once, `wake` it when something was put into the outbox, `stop` it at the end.

    `clock` gives Unix time; `jitter` a number from 0 to 1; `on_result` is told about every try, in the sending thread.
    `extras` add to messages what the outbox does not hold.
    """

    def __init__(
        self,
        database: Database,
        notifiers: Mapping[str, Notifier],
        *,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
        policy: DeliveryPolicy | None = None,
        on_result: Callable[[DeliveryResult], None] | None = None,
        extras: MessageExtras | None = None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._jitter = jitter
        self._policy = policy or DeliveryPolicy()
        self._on_result = on_result
        self._extras = extras or MessageExtras()
        self._may_send: Callable[[str], bool] = lambda _: True
        self._stopping = threading.Event()
        self._lanes = {name: _Lane(name, notifier) for name, notifier in sorted(notifiers.items())}

    def share(self, may_send: Callable[[str], bool]) -> None:
        """Share the outbox with other daemons: `may_send` says, before each message, whether this one sends.

        It is asked with a notifier's name, in its thread. Call it before `start`.
        """
        self._may_send = may_send

    def start(self) -> None:
        """Start one thread for each notifier; what an earlier process left in the outbox is sent first."""
        for lane in self._lanes.values():
            if lane.thread is None:
                lane.thread = threading.Thread(
                    target=self._run, args=(lane,), name=f"deliver-{lane.name}"[:60], daemon=True
                )
                lane.thread.start()

    def wake(self) -> None:
        """Say that there may be something to send; returns at once."""
        for lane in self._lanes.values():
            lane.woken.set()

    def stop(self, timeout: float = 5.0) -> bool:
        """Stop all threads and wait for them, all together at most `timeout` seconds; say whether all ended.

        A send that hangs is left to its own time limit: its thread does not keep the process alive, and its message is
        sent again by the next process.
        """
        self._stopping.set()
        self.wake()
        ends_at = time.monotonic() + timeout
        threads = [lane.thread for lane in self._lanes.values() if lane.thread is not None]
        for thread in threads:
            thread.join(max(ends_at - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in threads)

    def send_due(self, name: str) -> float | None:
        """Send everything that is due at one notifier; return when it should be asked again, None for when woken.

        This is one turn of a notifier's thread, without the waiting.
        """
        lane = self._lanes[name]
        self._mark_sent(lane)
        while not self._stopping.is_set():
            now = self._clock()
            if not self._may_send(name):
                return now + ELSEWHERE_SECONDS
            with self._database.read() as session:
                due = queries.due_notifications(session, name, now=now, limit=BATCH_MESSAGES_MAX)
            if not due:
                break
            held: set[str] = set()  # where an earlier message failed just now: nothing of the same may overtake it
            for group in self._groups(lane, due):
                if self._stopping.is_set() or not self._may_send(name):
                    break
                left = tuple(n for n in group if _fingerprint(n) not in held)
                if left and not self._try(lane, left):
                    held.update(_fingerprint(n) for n in left)
                if lane.n_failures_in_row >= self._policy.failures_in_row_max:
                    return self._clock() + self._pause(lane.n_failures_in_row - self._policy.failures_in_row_max + 1)
        with self._database.read() as session:
            return queries.next_due_at(session, name)

    def resend_due(self, name: str) -> float | None:
        """Tell a receiver that forgets what fires and what was just over; return when to do so again, None for never.

        Nothing happens before that time has come. A failure is logged and tried again a little later; the outbox is
        not touched, since the messages in it are a matter of their own.
        """
        lane = self._lanes[name]
        notifier = lane.notifier
        if not isinstance(notifier, Resending):
            return None
        now = self._clock()
        if now < lane.resend_at:
            return lane.resend_at
        if not self._may_send(name):
            return now + ELSEWHERE_SECONDS
        with self._database.read() as session:
            alerts = telling.told_alerts(session, name, resolved_since=now - RESEND_RESOLVED_SECONDS)
        runs = {told.alert.run for told in alerts}
        links = {run: link for run in runs if (link := self._extras.link_of(run)) is not None}
        _, error = _call(lambda: notifier.resend(alerts, links)) if alerts else (None, None)
        if error is None:
            lane.n_resends_failed = 0
            lane.resend_at = now + notifier.resend_seconds
        else:
            lane.n_resends_failed += 1
            lane.resend_at = now + min(self._pause(lane.n_resends_failed), notifier.resend_seconds)
            logger.warning("%d alerts were not sent again to %s: %s", len(alerts), name, error)
        return lane.resend_at

    def _groups(self, lane: _Lane, due: list[Notification]) -> list[Group]:
        if not joins(lane.notifier):
            return [(notification,) for notification in due]
        return grouped(due, storm_runs_min=self._policy.storm_runs_min)

    def _run(self, lane: _Lane) -> None:
        n_errors = 0
        while not self._stopping.is_set():
            lane.woken.clear()
            not_before = 0.0
            try:
                next_at = self.send_due(lane.name)
                n_errors = 0
                if lane.n_failures_in_row >= self._policy.failures_in_row_max:
                    not_before = next_at or 0.0
                elif (resend_at := self.resend_due(lane.name)) is not None:
                    next_at = resend_at if next_at is None else min(next_at, resend_at)
            except Exception:
                n_errors += 1
                logger.exception("delivery to %s failed; it is tried again", lane.name)
                next_at = not_before = self._clock() + self._pause(n_errors)
            self._wait(lane, next_at, not_before)

    def _wait(self, lane: _Lane, next_at: float | None, not_before: float) -> None:
        """Wait until the next message is due or somebody wakes the lane; being woken does not shorten a pause."""
        idle = self._policy.idle_seconds_max
        while not self._stopping.is_set() and (pause := not_before - self._clock()) > 0:
            if self._stopping.wait(min(pause, idle)):
                return
        left = idle if next_at is None else min(max(next_at - self._clock(), 0.0), idle)
        if left > 0 and not self._stopping.is_set():
            lane.woken.wait(left)

    def _try(self, lane: _Lane, group: Group) -> bool:
        """Send one group as one message; return False when it has to be tried again."""
        first = lead(group)
        reach("deliver.send")
        receipt, error = _call(lambda: lane.notifier.send(first, self._content(lane, group, first)))
        if error is not None and error.permanent and len(group) > 1:
            # One alert that the receiver will never take must not take the others along.
            done = [self._try(lane, (notification,)) for notification in group]
            return all(done)
        if error is not None:
            return self._failed(lane, group, error)
        reach("deliver.sent")
        lane.n_failures_in_row = 0
        lane.sent_unmarked.update({n.id: receipt for n in group})  # remembered until the database has taken it
        now = self._clock()
        self._mark_sent(lane)
        reach("deliver.marked")
        for notification in group:
            self._tell(lane, notification, error=None, dead=False, at=now)
        return True

    def _content(self, lane: _Lane, group: Group, first: Notification) -> Message:
        link = self._extras.link_of(first.alert.run)
        picture = self._extras.picture_of(first.alert) if shows_pictures(lane.notifier) else None
        if len(group) == 1:
            return compose(first, link=link, picture=picture)
        return compose_group(group, link=link, picture=picture)

    def _mark_sent(self, lane: _Lane) -> None:
        if not lane.sent_unmarked:
            return
        now = self._clock()
        with self._database.write() as session:
            for notification_id, receipt in sorted(lane.sent_unmarked.items()):
                writer.mark_sent(session, notification_id, now, receipt)
        lane.sent_unmarked.clear()

    def _failed(self, lane: _Lane, group: Group, error: DeliveryError) -> bool:
        """Record a failed try; return whether all of the group is given up, so that later ones need not wait for it."""
        now = self._clock()
        text = printable(str(error), ERROR_CHARACTERS_MAX)
        pause = max(self._pause(max(n.n_attempts for n in group) + 1), error.retry_after_seconds or 0.0)
        dead = {n.id for n in group if error.permanent or self._is_given_up(n, now)}
        if not error.permanent:
            lane.n_failures_in_row += 1
        for notification in group:
            is_dead = notification.id in dead
            log = logger.error if is_dead else logger.warning
            log(
                "message %s to %s was not delivered (%s): %s",
                notification.deduplication_key,
                lane.name,
                "given up" if is_dead else f"tried again in {pause:.0f} s",
                text,
            )
        with self._database.write() as session:
            for notification in group:
                is_dead = notification.id in dead
                writer.mark_failed(session, notification.id, error=text, due_at=now + pause, dead=is_dead)
        for notification in group:
            self._tell(lane, notification, error=text, dead=notification.id in dead, at=now)
        return len(dead) == len(group)

    def _is_given_up(self, notification: Notification, now: float) -> bool:
        old = now - notification.created_at >= self._policy.give_up_seconds
        return old and notification.n_attempts + 1 >= self._policy.give_up_tries_min

    def _pause(self, n_failures: int) -> float:
        policy = self._policy
        grown = policy.backoff_seconds_min * 2.0 ** min(n_failures - 1, 30)
        return min(grown * (0.5 + self._jitter()), policy.backoff_seconds_max)

    def _tell(self, lane: _Lane, notification: Notification, *, error: str | None, dead: bool, at: float) -> None:
        if self._on_result is not None:
            self._on_result(
                DeliveryResult(
                    notifier=lane.name,
                    notification_id=notification.id,
                    reason=notification.reason,
                    error=error,
                    dead=dead,
                    at=at,
                )
            )


class _Lane:
    """One notifier's own state: nothing that would be missed after a restart."""

    def __init__(self, name: str, notifier: Notifier) -> None:
        self.name = name
        self.notifier = notifier
        self.woken = threading.Event()
        self.thread: threading.Thread | None = None
        self.n_failures_in_row = 0
        self.sent_unmarked: dict[int, str | None] = {}
        self.resend_at = 0.0  # at once after a start
        self.n_resends_failed = 0


def _fingerprint(notification: Notification) -> str:
    """Return what a conversation is about, over all its episodes."""
    return notification.conversation.rpartition(".")[0]


def _call(send: Callable[[], str | None]) -> tuple[str | None, DeliveryError | None]:
    """Return what sending returned, or why it failed."""
    try:
        return send(), None
    except DeliveryError as error:
        return None, error
    except Exception as error:  # noqa: BLE001 - a supervisor: a broken notifier must not stop its lane
        # Only the type: the text of a foreign error may hold the address or the password.
        logger.error("notifier failed with %s", type(error).__name__)  # noqa: TRY400 - no traceback: see above
        return None, DeliveryError(f"the notifier failed with {type(error).__name__}")
