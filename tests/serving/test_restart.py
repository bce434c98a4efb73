"""A service that is killed in the middle of its work is started again, and answers as before."""

import pytest
from benchmarks.reliability.restarts import measure


@pytest.mark.long
def test_after_a_kill_the_service_answers_as_before():
    result = measure(1)
    assert (result["starts"], result["other texts"]) == (2, 0)
