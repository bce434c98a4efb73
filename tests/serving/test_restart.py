"""A service that is killed in the middle of its work is started again, and answers as before."""

import pytest
from benchmarks.reliability.restarts import measure


@pytest.mark.long
def test_after_a_kill_the_service_answers_as_before():
    found = measure(1)
    assert (found["starts"], found["other texts"]) == (2, 0)
