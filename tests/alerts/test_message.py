"""What a notification says, and that nothing hidden gets into it."""

from __future__ import annotations

import shlex
from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from alerts.message import TITLE_CHARACTERS_MAX, compose, example_notification, time_text
from alerts.notifier import printable, printable_path
from storage.records import Alert, AlertState, Severity
from tests.support.alert_series import START
from tests.support.notifier_conformance import make_notification
from tests.support.stored import alerts, make_alert


def test_a_firing_alert_says_what_where_and_from_where_to_go_on() -> None:
    message = compose(make_notification(alert=make_alert("0123456789abcdef", opened_at=START)))
    assert message.title == "Critical: nonfinite in gpt at step 7"
    assert message.text == "3 elements are NaN"
    assert message.thread == "0123456789abcdef.1"
    assert message.facts == (
        ("Run", "gpt"),
        ("Step", "7"),
        ("Tensor", "a.weight"),
        ("Last good checkpoint", "step 6"),
        ("Resume from", "/data/gpt/checkpoint-6.pt"),
        ("Resume with", '--resume "$(ckptwatch last-good gpt)"'),
        ("Since", "2023-11-14 22:13:20 UTC"),
        ("first bad tensor", "a.weight"),
    )


def test_without_a_good_checkpoint_it_says_so() -> None:
    facts = dict(compose(make_notification(last_good_step=None, last_good_path=None)).facts)
    assert facts["Last good checkpoint"] == "none known"
    assert not {"Resume from", "Resume with"} & facts.keys()


def test_the_command_that_resumes_is_fit_for_a_shell_whatever_the_run_is_called() -> None:
    notification = make_notification(alert=make_alert(run="a b'; rm -rf $HOME #"))
    command = dict(compose(notification).facts)["Resume with"].removeprefix('--resume "$(').removesuffix(')"')
    assert shlex.split(command) == ["ckptwatch", "last-good", "a b'; rm -rf $HOME #"]


def test_a_path_is_called_a_checkpoint_and_not_a_tensor() -> None:
    facts = dict(compose(make_notification(alert=make_alert(subject="/data/x.pt"))).facts)
    assert facts["Checkpoint"] == "/data/x.pt"
    assert "Tensor" not in facts


def test_a_resolve_and_a_repeat_say_what_they_are() -> None:
    alert = make_alert(state=AlertState.RESOLVED, resolved_at=START + 60, severity=Severity.WARNING)
    resolved = compose(make_notification(alert=alert, reason="resolved"))
    assert resolved.title == "Resolved: nonfinite in gpt at step 7"
    assert dict(resolved.facts)["Resolved"] == "2023-11-14 22:14:20 UTC"
    assert compose(make_notification(alert=alert, reason="repeat")).title.startswith("Still warning: ")


def test_an_unknown_step_is_left_out() -> None:
    message = compose(make_notification(alert=make_alert(step=None)))
    assert message.title == "Critical: nonfinite in gpt"
    assert "Step" not in dict(message.facts)


@given(alerts, st.none() | st.text(st.characters(codec=None)))
def test_every_text_is_one_printable_line(alert: Alert, path: str | None) -> None:
    message = compose(make_notification(alert=alert, last_good_path=path))
    texts = [message.title, message.text, *(text for fact in message.facts for text in fact)]
    for text in texts:
        assert text.isprintable()
        text.encode()
    assert len(message.title) <= TITLE_CHARACTERS_MAX
    assert len(fields(message)) == 9  # thread, related, link and picture are not made of names


def test_hidden_characters_are_written_out_and_long_texts_cut() -> None:
    assert printable("a\tb\r\nc  d", 100) == "a b c d"
    assert printable("a\u202eb\x00\ud800\U000e0001", 100) == "a\\u202eb\\u0000\\ud800\\U000e0001"
    assert printable("x" * 100, 10) == "x" * 9 + "…"
    assert printable_path("/a  b\n") == "/a  b\\u000a"


def test_times_outside_the_calendar_are_unknown() -> None:
    assert time_text(0.0) == "1970-01-01 00:00:00 UTC"
    for odd in (1e300, float("inf"), float("nan"), -1e20):
        assert time_text(odd) == "unknown"


def test_the_example_says_that_it_is_a_test() -> None:
    message = compose(example_notification("slack", START))
    assert "test message" in message.text
    assert message.severity == "info"
