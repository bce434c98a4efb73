import pytest

from sprachbund.evaluation.code_switch import switch_points, switch_scores
from sprachbund.evaluation.lines import EmbeddedSpan
from tests.evaluation.made import line
from tests.evaluation.scores import switching_scores

# "voy a la meeting room mañana" into English; said in English: "meeting room"
REFERENCE = "I go to the meeting room tomorrow"
GERMAN = "ich gehe morgen in den Konferenzraum hinauf"


def switched(hypothesis, reference, *spans, **values):
    return line(hypothesis, reference, source="es", switched=True, embedded=spans, **values)


def german(hypothesis, **values):
    span = EmbeddedSpan(**{"said": "meeting room", "language": "en", "start": 5, "end": 6, **values})
    return switched(hypothesis, GERMAN, span)


def test_a_right_translation_has_all():
    result = switch_scores([german(GERMAN)])
    assert result.recalled.percent == 100
    assert result.near.failed == result.elsewhere.failed == 0
    assert result.dropped.failed == result.untranslated.failed == 0
    assert set(result.left_out.values()) == {0}


def test_untranslated_and_dropped_spans_are_told_apart():
    left = switch_scores([german("ich gehe morgen in den Meeting Room hinauf")])
    assert (left.untranslated.failed, left.dropped.failed, left.recalled.failed) == (1, 0, 0)
    gone = switch_scores([german("ich gehe morgen in den hinauf")])
    assert (gone.untranslated.failed, gone.dropped.failed) == (0, 1)


def test_words_that_stay_the_same_in_the_target_are_translated():
    span = EmbeddedSpan(said="meeting room", language="en", start=4, end=6)
    result = switch_scores([switched(REFERENCE, REFERENCE, span, target="en")])
    assert result.untranslated.evaluated == 0
    assert result.left_out["untranslated"] == 1
    assert result.recalled.percent == 100


def test_errors_near_a_switch_and_elsewhere():
    result = switch_scores([german("du gehe morgen in dem Konferenzraum hinauf")])
    # switches before and behind word 5; near are the words 3 to 6 and no seventh
    assert (result.near.failed, result.near.evaluated) == (1, 4)
    assert (result.elsewhere.failed, result.elsewhere.evaluated) == (1, 3)


def test_a_mark_that_stands_alone_is_no_word():
    span = EmbeddedSpan(said="meeting", language="en", start=1, end=2)
    result = switch_scores([switched("une réunion", "une réunion ?", span, target="fr")])
    assert (result.near.failed, result.near.evaluated, result.elsewhere.evaluated) == (0, 2, 0)


def test_switch_points_are_inside_the_sentence():
    spans = [
        EmbeddedSpan(said="a", language="en", start=0, end=2),
        EmbeddedSpan(said="b", language="en", start=4, end=5),
    ]
    assert switch_points(spans, 5) == [2, 4]


def test_rates_add_up_over_lines():
    result = switch_scores([german(GERMAN), german("ich gehe morgen in den hinauf")])
    assert (result.recalled.failed, result.recalled.evaluated) == (1, 2)
    assert result.dropped.percent == 50


def test_what_is_not_known_is_left_out_and_counted():
    without_place = german("ich gehe in den meeting room", start=None, end=None)
    without_words = german("ich gehe", said="")
    result = switch_scores([without_place, without_words, german(GERMAN)])
    assert (result.recalled.failed, result.recalled.evaluated) == (1, 2)
    assert (result.untranslated.failed, result.untranslated.evaluated) == (1, 2)
    assert (result.dropped.failed, result.dropped.evaluated) == (0, 1)
    # the words of the two lines with their place
    assert result.near.evaluated + result.elsewhere.evaluated == 14
    assert result.left_out == {"recalled": 1, "near": 1, "elsewhere": 1, "untranslated": 1, "dropped": 2}


def test_a_line_with_one_unknown_place_has_no_switch_points():
    known, unknown = (EmbeddedSpan(language="en", start=a, end=b) for a, b in ((5, 6), (None, None)))
    result = switch_scores([switched(GERMAN, GERMAN, known, unknown)])
    assert result.near.evaluated == result.elsewhere.evaluated == 0
    assert result.left_out["near"] == 1
    assert result.recalled.evaluated == 1


@pytest.mark.parametrize(("hypothesis", "untranslated"), [("我们去meeting吧", 1), ("我们去开会吧", 0)])
def test_scripts_without_spaces(hypothesis, untranslated):
    span = EmbeddedSpan(said="meeting", language="en", start=3, end=5)
    result = switch_scores([switched(hypothesis, "我们去开会吧", span, target="zh")])
    assert result.untranslated.failed == untranslated
    assert (result.recalled.failed, result.recalled.evaluated) == (2 - 2 * untranslated, 2)


def test_numbers_of_nothing_are_not_written():
    assert switching_scores([line(GERMAN, GERMAN)]) == []
    values = {s.metric: s.value for s in switching_scores([german(GERMAN, start=None, end=None, said="")])}
    assert "span recall" not in values
    assert values["span recall: evaluated"] == 0
    assert values["span recall: left out"] == 1


def test_wrong_language_of_code_switched_and_monolingual_outputs():
    english = "press two to speak to the reception"
    spanish = "pulse dos para hablar con la recepción"
    mixed = [switched(spanish, english, target="en"), switched(english, english, target="en")]
    mono = line(english, english, source="es", target="en")
    result = {(s.metric, s.member): s.value for s in switching_scores([*mixed, mono])}
    assert result["wrong language", "code-switched"] == 50
    assert result["wrong language", "monolingual"] == 0
    assert result["wrong language: evaluated", "code-switched"] == 2
