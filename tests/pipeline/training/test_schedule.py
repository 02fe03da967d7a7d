"""When checkpoints are written, with a simulated clock."""

from pipeline.training.schedule import Schedule

SMALL, LARGE = 4_000_000, 1_000_000_000
"""Sizes in bytes that are estimated to take 0.04 s and 10 s to write."""


def checkpoint_iterations(
    iterations: int, seconds: float, size: int, minutes: float = 10, begun: int = 0, writing: float | None = None
):
    """Iterations after which a run writes checkpoints, `seconds` per iteration; `writing`: seconds per checkpoint."""
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
    assert checkpoint_iterations(1000, 2, SMALL) == [10, 310, 610, 910]


def test_the_first_checkpoint_comes_after_a_minute_of_a_long_run():
    assert checkpoint_iterations(100_000, 2, SMALL)[:2] == [30, 330]


def test_a_resumed_run_writes_its_first_checkpoint_as_early():
    assert checkpoint_iterations(1000, 2, SMALL, begun=500) == [510, 810]


def test_a_short_run_is_not_slowed_down_by_large_checkpoints():
    assert checkpoint_iterations(100, 0.5, LARGE) == []
    assert checkpoint_iterations(100, 0.01, SMALL) == [80]


def test_a_large_first_checkpoint_comes_after_a_minute():
    assert checkpoint_iterations(200, 1, LARGE) == [60]


def test_checkpoints_that_are_slow_to_write_are_rarer_than_every_ten_minutes():
    assert checkpoint_iterations(3000, 1, LARGE, writing=50) == [60, 1060, 2060]


def test_minutes_set_the_interval():
    assert checkpoint_iterations(10, 1, SMALL, minutes=0) == list(range(1, 11))
    assert checkpoint_iterations(300, 1, SMALL, minutes=0.5)[:3] == [3, 33, 63]
