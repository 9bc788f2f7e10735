"""Retry policy: transient errors are retried within limits, others are raised at once."""

import asyncio

import pytest

from sharelock_ray.storage.retry import ExhaustedError, RetryPolicy

QUICK = RetryPolicy(attempts=4, first_s=0.001, longest_s=0.002)


class Failing:
    """Fails `times` times, then returns the number of calls."""

    def __init__(self, times: int, error: type[Exception] = ConnectionError) -> None:
        self.times, self.error, self.calls = times, error, 0

    async def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error(f"fault {self.calls}")
        return self.calls


def is_connection(error: Exception) -> bool:
    return isinstance(error, ConnectionError)


@pytest.mark.parametrize("faults", [0, 1, 3])
def test_retries_until_success_and_counts_the_failures(faults: int) -> None:
    assert asyncio.run(QUICK.run(Failing(faults), is_connection)) == (faults + 1, faults)


def test_ends_after_the_maximum_attempts_with_the_last_error() -> None:
    work = Failing(100)
    with pytest.raises(ExhaustedError, match=r"^4 attempts in 0 s$") as caught:
        asyncio.run(QUICK.run(work, is_connection))
    assert work.calls == 4
    assert str(caught.value.__cause__) == "fault 4"


def test_a_permanent_error_is_raised_at_once() -> None:
    work = Failing(1, KeyError)
    with pytest.raises(KeyError):
        asyncio.run(QUICK.run(work, is_connection))
    assert work.calls == 1


def test_progress_resets_the_number_of_attempts() -> None:
    work = Failing(50)
    assert asyncio.run(QUICK.run(work, is_connection, progress=lambda: work.calls // 3)) == (51, 50)


def test_an_attempt_that_hangs_ends_at_the_time_limit() -> None:
    policy = RetryPolicy(attempts=1000, total_s=0.05)
    with pytest.raises(ExhaustedError, match=r"^1 attempts "):
        asyncio.run(policy.run(lambda: asyncio.sleep(3600), is_connection))


def test_slow_progress_may_exceed_the_time_limit() -> None:
    done = 0

    async def slow() -> int:
        nonlocal done
        while done < 20:
            await asyncio.sleep(0.01)
            done += 1
        return done

    policy = RetryPolicy(first_s=0.001, total_s=0.05)
    found, failed = asyncio.run(policy.run(slow, is_connection, progress=lambda: done))
    assert found == 20
    assert failed > 1


def test_a_pause_beyond_the_time_limit_is_not_started() -> None:
    policy = RetryPolicy(attempts=1000, first_s=0.02, longest_s=0.02, total_s=0.1)
    work = Failing(1000)
    with pytest.raises(ExhaustedError):
        asyncio.run(policy.run(work, is_connection))
    assert 1 < work.calls < 1000


def test_pauses_are_uniform_between_zero_and_a_bound_that_doubles() -> None:
    policy = RetryPolicy(first_s=1, longest_s=10)
    for failed, bound in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (50, 10)]:
        pauses = [policy.pause(failed) / bound for _ in range(2000)]
        assert 0 <= min(pauses) < 0.02
        assert 0.98 < max(pauses) <= 1
        assert sum(pauses) / len(pauses) == pytest.approx(0.5, abs=0.05)
