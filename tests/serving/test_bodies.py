"""A segment in the names of OpenAI's API."""

import pytest

from sprachbund.decoding.result import Segment
from sprachbund.serving.schemas import segment_values


@pytest.mark.parametrize(("of_model", "shown"), [(0.7, 0.7), (0.0, 0.0), (None, 0.1)])
def test_the_probability_of_no_speech_is_the_models_own_where_it_has_one(
    of_model: float | None, shown: float
) -> None:
    segment = Segment(
        start_s=1.0,
        end_s=2.0,
        source_language="de",
        target_language="en",
        text="hello",
        speech_probability=0.9,
        no_speech_probability=of_model,
    )
    assert segment_values(segment, 0)["no_speech_prob"] == shown


@pytest.mark.parametrize(("of_model", "shown"), [(0.123456, 0.1235), (0.0, 0.0), (None, None)])
def test_the_probability_of_a_wrong_text_is_null_where_nobody_knows(
    of_model: float | None, shown: float | None
) -> None:
    segment = Segment(
        start_s=1.0,
        end_s=2.0,
        source_language="de",
        target_language="en",
        text="hello",
        out_of_domain=of_model,
    )
    assert segment_values(segment, 0)["out_of_domain"] == shown
