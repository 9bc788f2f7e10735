"""Grades, and checks that cannot be made."""

import pytest

from sharelock_ray.errors import RequestError
from sharelock_ray.health.check import Check, graded, run


@pytest.mark.parametrize(("value", "state"), [(10, "ok"), (9.9, "warn"), (1, "warn"), (0.9, "fail")])
def test_a_value_is_graded_and_only_an_ok_needs_no_remedy(value: float, state: str) -> None:
    check = graded("disk", value, warn=10, fail=1, found="some", remedy="free space")
    assert (check.state, check.remedy) == (state, "" if state == "ok" else "free space")


def test_a_check_that_raises_fails_and_hides_no_other() -> None:
    def raises() -> Check:
        raise RequestError("no such\nbucket")

    def breaks() -> Check:
        raise KeyError("gone")

    found = run([("a", raises), ("b", lambda: Check("b", "ok", "fine")), ("c", breaks)])
    assert [(each.name, each.state, each.found) for each in found] == [
        ("a", "fail", "no such bucket"),
        ("b", "ok", "fine"),
        ("c", "fail", "KeyError: 'gone'"),
    ]
    assert all(each.remedy for each in found if each.state == "fail")


def test_no_checks_are_no_results() -> None:
    assert run([]) == []
