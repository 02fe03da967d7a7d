"""When checkpoints are written, by a clock that the test sets."""

from pipeline.training.schedule import Schedule

SMALL, LARGE = 4_000_000, 1_000_000_000
"""Sizes in bytes that are taken to need 0.04 s and 10 s to write."""


def written(iterations: int, seconds: float, size: int, minutes: float = 10, begun: int = 0, writing: float | None = None):
    """After which iterations, each of so many seconds, a run writes checkpoints; `writing`: the seconds that takes."""
    now = 0.0
    schedule, after = Schedule(begun, iterations, size, minutes, clock=lambda: now), []
    for iteration in range(begun + 1, iterations + 1):
        now += seconds
        if schedule.is_due(iteration):
            took = size / 100e6 if writing is None else writing
            now += took
            schedule.restart(took)
            after.append(iteration)
    return after


def test_the_first_checkpoint_comes_after_one_percent_of_a_run_and_the_next_after_ten_minutes():
    assert written(1000, 2, SMALL) == [10, 310, 610, 910]


def test_the_first_checkpoint_comes_after_a_minute_of_a_long_run():
    assert written(100_000, 2, SMALL)[:2] == [30, 330]


def test_a_resumed_run_has_a_first_checkpoint_of_its_own():
    assert written(1000, 2, SMALL, begun=500) == [510, 810]


def test_a_short_run_is_not_held_up_by_large_checkpoints():
    assert written(100, 0.5, LARGE) == []
    assert written(100, 0.01, SMALL) == [80]


def test_a_large_checkpoint_comes_after_a_minute_even_so():
    assert written(200, 1, LARGE) == [60]


def test_where_writing_is_slow_checkpoints_are_rarer_than_every_ten_minutes():
    assert written(3000, 1, LARGE, writing=50) == [60, 1060, 2060]


def test_minutes_say_how_often():
    assert written(10, 1, SMALL, minutes=0) == list(range(1, 11))
    assert written(300, 1, SMALL, minutes=0.5)[:3] == [3, 33, 63]
