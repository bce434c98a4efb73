from sprachbund.evaluation.code_switch import EmbeddedSpan, SwitchedLine, switch_points, switch_scores
from tests.evaluation.made import line

# "voy a la meeting room mañana" into English; said in English: "meeting room"
REFERENCE = "I go to the meeting room tomorrow"


def switched(hypothesis, said="meeting room", reference=REFERENCE, target="en"):
    span = EmbeddedSpan(said=said, language="en", start=4, end=6)
    return SwitchedLine(line=line(hypothesis, reference, source="es", target=target), spans=[span])


GERMAN = "ich gehe morgen in den Konferenzraum hinauf"


def german(hypothesis):
    span = EmbeddedSpan(said="meeting room", language="en", start=5, end=6)
    return SwitchedLine(line=line(hypothesis, GERMAN, source="es"), spans=[span])


def test_a_right_translation_has_all():
    found = switch_scores([german(GERMAN)])
    assert found.recalled.percent == 100
    assert found.near.failed == found.elsewhere.failed == 0
    assert found.dropped.failed == found.untranslated.failed == 0


def test_untranslated_and_dropped_spans_are_told_apart():
    left = switch_scores([german("ich gehe morgen in den Meeting Room hinauf")])
    assert (left.untranslated.failed, left.dropped.failed, left.recalled.failed) == (1, 0, 0)
    gone = switch_scores([german("ich gehe morgen in den hinauf")])
    assert (gone.untranslated.failed, gone.dropped.failed) == (0, 1)


def test_words_that_stay_the_same_in_the_target_are_translated():
    found = switch_scores([switched(REFERENCE)])
    assert found.untranslated.failed == 0
    assert found.recalled.percent == 100


def test_errors_near_a_switch_and_elsewhere():
    found = switch_scores([german("du gehe morgen in dem Konferenzraum hinauf")])
    # switches before and behind word 5; near are the words 3 to 6 and no seventh
    assert (found.near.failed, found.near.judged) == (1, 4)
    assert (found.elsewhere.failed, found.elsewhere.judged) == (1, 3)


def test_switch_points_are_inside_the_sentence():
    spans = [
        EmbeddedSpan(said="a", language="en", start=0, end=2),
        EmbeddedSpan(said="b", language="en", start=4, end=5),
    ]
    assert switch_points(spans, 5) == [2, 4]


def test_rates_add_up_over_lines():
    found = switch_scores([german(GERMAN), german("ich gehe morgen in den hinauf")])
    assert (found.recalled.failed, found.recalled.judged) == (1, 2)
    assert found.dropped.percent == 50
