"""Requests and segments in the names of OpenAI's API."""

from dataclasses import replace
from typing import Any

import pytest

from sprachbund.decoding.result import Segment
from sprachbund.serving.schemas import (
    RefusalError,
    TranscriptionForm,
    TranslationForm,
    named_as_sent,
    segment_values,
)
from sprachbund.text.languages import UnknownLanguageError
from sprachbund.util.options import OptionValueError

SEGMENT = Segment(start_s=1.0, end_s=2.0, source_language="de", target_language="en", text="hello")


@pytest.mark.parametrize(("of_model", "shown"), [(0.7, 0.7), (0.0, 0.0), (None, 0.1)])
def test_the_probability_of_no_speech_is_the_models_own_where_it_has_one(
    of_model: float | None, shown: float
) -> None:
    segment = replace(SEGMENT, speech_probability=0.9, no_speech_probability=of_model)
    assert segment_values(segment, 0)["no_speech_prob"] == shown


@pytest.mark.parametrize(("of_model", "shown"), [(0.123456, 0.1235), (0.0, 0.0), (None, None)])
def test_the_probability_of_a_wrong_text_is_null_where_nobody_knows(
    of_model: float | None, shown: float | None
) -> None:
    assert segment_values(replace(SEGMENT, out_of_domain=of_model), 0)["out_of_domain"] == shown


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"timestamp_granularities[]": ["word"]}, "word_timestamps", "timestamp_granularities[] is ['word']"),
        ({"include[]": ["logprobs"]}, "word_timestamps", "include[] is ['logprobs']"),
        ({"hot_words[]": ["Ada"]}, "hot_words", "hot_words[] is ['Ada']"),
        ({"digits": True}, "digits", "digits is 'seen'"),
    ],
)
def test_refused_options_are_named_as_the_client_sent_them(
    fields: dict[str, Any], field: str, says: str
) -> None:
    form = TranscriptionForm(model="bundled", **fields)
    with pytest.raises(RefusalError) as refused, named_as_sent(form.sent, form.languages_sent):
        raise OptionValueError(field, "seen", "leave `hot_words` out")
    assert refused.value.status == 400
    assert refused.value.message == f"{says}; leave hot_words[] out"
    assert refused.value.param == says.partition(" is ")[0]


@pytest.mark.parametrize("field", ["language", "languages[]", "target_language"])
def test_an_unknown_language_is_refused_with_the_field_that_has_it(field: str) -> None:
    fields: dict[str, Any] = {"languages[]": ["de"], "target_language": "en"}
    fields[field] = ["de", "xx"] if field == "languages[]" else "xx"
    form = TranslationForm(model="bundled", **fields)
    with pytest.raises(RefusalError) as refused, named_as_sent(form.sent, form.languages_sent):
        raise UnknownLanguageError("unknown language 'xx'", "xx")
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, "unknown_language", field)
