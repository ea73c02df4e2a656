"""From the outbox to the receivers: at least once, in order for each alert, and patiently when a receiver is down.

One thread a notifier, so that a slow receiver delays no other. The state of every message is in the database: sent
first and marked after, so that a crash between the two sends a message again and never loses one. It judges nothing and
knows no protocol.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alerts.message import compose
from alerts.notifier import DeliveryError, Notifier, printable
from storage import queries, writer
from storage.records import Notification

if TYPE_CHECKING:
    from storage.database import Database

BATCH_MESSAGES_MAX = 20
ERROR_CHARACTERS_MAX = 500

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryPolicy:
    """How patient delivery is.

    The n-th failed try of a message is followed by a pause of `backoff_seconds_min` * 2^(n-1) times a random factor
    between 0.5 and 1.5, at most `backoff_seconds_max`; a receiver that asks for a longer one gets it. A message is dead
    after `give_up_seconds`, but not before it was tried `give_up_tries_min` times, so that one which waited while the
    daemon was off gets its chance. After `failures_in_row_max` failed messages in a row the receiver is taken to be
    down, and the others wait as well. `idle_seconds_max` is how long a thread sleeps without being woken.
    """

    backoff_seconds_min: float = 1.0
    backoff_seconds_max: float = 300.0
    give_up_seconds: float = 24 * 3600.0
    give_up_tries_min: int = 10
    failures_in_row_max: int = 3
    idle_seconds_max: float = 30.0


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
    ) -> None:
        self._database = database
        self._clock = clock
        self._jitter = jitter
        self._policy = policy or DeliveryPolicy()
        self._on_result = on_result
        self._stopping = threading.Event()
        self._lanes = {name: _Lane(name, notifier) for name, notifier in sorted(notifiers.items())}

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
        self._mark_left_over(lane)
        while not self._stopping.is_set():
            now = self._clock()
            with self._database.read() as session:
                due = queries.due_notifications(session, name, now=now, limit=BATCH_MESSAGES_MAX)
            if not due:
                break
            held: set[str] = set()  # alerts whose earlier message failed just now: nothing of theirs may overtake it
            for notification in due:
                if self._stopping.is_set():
                    break
                if notification.alert.fingerprint in held:
                    continue
                if not self._try(lane, notification):
                    held.add(notification.alert.fingerprint)
                if lane.n_failures_in_row >= self._policy.failures_in_row_max:
                    return self._clock() + self._pause(lane.n_failures_in_row - self._policy.failures_in_row_max + 1)
        with self._database.read() as session:
            return queries.next_due_at(session, name)

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

    def _try(self, lane: _Lane, notification: Notification) -> bool:
        """Send one message; return False when it has to be tried again."""
        if notification.id not in lane.sent_unmarked:
            error = _send(lane.notifier, notification)
            if error is not None:
                return self._failed(lane, notification, error)
            lane.n_failures_in_row = 0
            lane.sent_unmarked.add(notification.id)  # remembered until the database has taken it
        now = self._clock()
        with self._database.write() as session:
            writer.mark_sent(session, notification.id, now)
        lane.sent_unmarked.discard(notification.id)
        self._tell(lane, notification, error=None, dead=False, at=now)
        return True

    def _mark_left_over(self, lane: _Lane) -> None:
        if not lane.sent_unmarked:
            return
        with self._database.write() as session:
            for notification_id in sorted(lane.sent_unmarked):
                writer.mark_sent(session, notification_id, self._clock())
        lane.sent_unmarked.clear()

    def _failed(self, lane: _Lane, notification: Notification, error: DeliveryError) -> bool:
        """Record a failed try; return whether the message is given up, so that later ones need not wait for it."""
        now = self._clock()
        text = printable(str(error), ERROR_CHARACTERS_MAX)
        old = now - notification.created_at >= self._policy.give_up_seconds
        dead = error.permanent or (old and notification.n_attempts + 1 >= self._policy.give_up_tries_min)
        pause = max(self._pause(notification.n_attempts + 1), error.retry_after_seconds or 0.0)
        if not error.permanent:
            lane.n_failures_in_row += 1
        log = logger.error if dead else logger.warning
        log(
            "message %s to %s was not delivered (%s): %s",
            notification.deduplication_key,
            lane.name,
            "given up" if dead else f"tried again in {pause:.0f} s",
            text,
        )
        with self._database.write() as session:
            writer.mark_failed(session, notification.id, error=text, due_at=now + pause, dead=dead)
        self._tell(lane, notification, error=text, dead=dead, at=now)
        return dead

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
        self.sent_unmarked: set[int] = set()


def _send(notifier: Notifier, notification: Notification) -> DeliveryError | None:
    try:
        notifier.send(notification, compose(notification))
    except DeliveryError as error:
        return error
    except Exception as error:  # noqa: BLE001 - a supervisor: a broken notifier must not stop its lane
        # Only the type: the text of a foreign error may hold the address or the password.
        logger.error("notifier failed with %s", type(error).__name__)  # noqa: TRY400 - no traceback: see above
        return DeliveryError(f"the notifier failed with {type(error).__name__}")
    return None
