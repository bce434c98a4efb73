"""Clocks: the simulated one moves only where it has to, and counts work only where it is asked to."""

import time

import pytest

from sprachbund.streaming.live import SimulatedClock, WallClock


def test_a_simulated_clock_jumps_and_never_goes_back():
    clock = SimulatedClock()
    clock.wait_until(5.0)
    clock.wait_until(3.0)
    with clock.working():
        time.sleep(0.01)
    assert clock.now_s() == 5.0


def test_computation_counts_where_it_is_to_count():
    clock = SimulatedClock(computing=True)
    clock.wait_until(2.0)
    with clock.working():
        time.sleep(0.02)
    assert clock.now_s() >= 2.02


def test_the_wall_clock_waits():
    clock = WallClock()
    clock.wait_until(0.05)
    assert clock.now_s() >= 0.05
    before = clock.now_s()
    clock.wait_until(0.0)
    assert clock.now_s() == pytest.approx(before, abs=0.02)
