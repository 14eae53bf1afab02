"""The conformance kit: what a check may say, and what is made of it."""

from __future__ import annotations

import pytest

from foresight_bench.commands.checking import _text
from foresight_bench.testing.kit import (
    Broken,
    Checks,
    Finding,
    NotApplicable,
    Status,
    Unverified,
    run_check,
    run_checks,
)

CHECKS: Checks[list[str]] = Checks()


@CHECKS.must("Nothing MUST be wrong.")
def nothing_wrong(subject: list[str]) -> None:
    subject.append("looked")


@CHECKS.must("It MUST hold.")
def holds(subject: list[str]) -> None:
    raise Broken("It does not hold, usually for a reason.")


@CHECKS.must("It MUST concern it.")
def concerns(subject: list[str]) -> None:
    raise NotApplicable("It has none.")


@CHECKS.must("It MUST be seen.")
def seen(subject: list[str]) -> None:
    raise Unverified("It takes a GPU.")


@CHECKS.must("It MUST work.")
def works(subject: list[str]) -> None:
    raise KeyError("what")


def test_every_check_has_its_status_its_sentence_and_its_must() -> None:
    subject: list[str] = []
    found = run_checks(CHECKS, subject)
    assert [(each.check, str(each.status), each.message) for each in found] == [
        ("nothing-wrong", "pass", ""),
        ("holds", "fail", "It does not hold, usually for a reason."),
        ("concerns", "not-applicable", "It has none."),
        ("seen", "unverified", "It takes a GPU."),
        ("works", "fail", "KeyError: 'what'"),
    ]
    assert subject == ["looked"]
    assert [each.must for each in found] == [check.must for check in CHECKS]
    assert [bool(each.traceback) for each in found] == [False, False, False, False, True], "of what nobody expected"


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("holds", Status.EXPECTED, "known (It does not hold, usually for a reason.)"),
        ("works", Status.EXPECTED, "known (KeyError: 'what')"),
        ("nothing-wrong", Status.FAIL, "It is listed as expected to fail, and passes; take it off the list."),
        ("seen", Status.UNVERIFIED, "It takes a GPU."),
    ],
)
def test_a_failure_that_is_expected_is_none_and_one_that_does_not_come_is(
    name: str, status: Status, message: str
) -> None:
    (check,) = (check for check in CHECKS if check.name == name)
    found: Finding = run_check(check, [], {name: "known", "other": "not asked"})
    assert (found.status, found.message) == (status, message)


def test_an_interrupt_gets_out() -> None:
    checks: Checks[None] = Checks()

    @checks.must("It MUST end.")
    def ends(subject: None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_checks(checks, None)


def test_the_same_error_is_traced_once() -> None:
    def finding(check: str, message: str) -> Finding:
        return Finding(check, "A MUST.", Status.FAIL, message, 0.1, f"Traceback of {message}")

    text = _text([finding("shapes", "ValueError: a"), finding("finite", "ValueError: a"), finding("layout", "other")])
    assert text.count("Traceback of ValueError: a") == 1
    assert "ValueError: a (as in shapes)" in text
    assert "Traceback of other" in text
