"""Whole texts as drafts of torch's searches: no text changes, and a text that is right is accepted."""

from dataclasses import replace

import pytest

from sprachbund.decoding.drafts.whole_text import WholeTextDraft
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation
from sprachbund.models.base import Target
from tests.decoding.test_speculative import PLAIN, flat
from tests.decoding.tiny_family import TinyFamily, random_memory


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("prefix", [(), (7, 9)])
def test_no_text_changes(beam_size: int, prefix: tuple[int, ...]) -> None:
    family, memory = TinyFamily(seed=5), random_memory([7, 4, 9])
    options = replace(PLAIN, beam_size=beam_size)
    targets = [[Target(language=tag, prefix=prefix) for tag in ("de", "en")] for _ in range(3)]
    wanted = flat(search(family, memory, targets, options))
    right = [row.tokens for row in wanted]
    for name, texts in {
        "right": right,
        "wrong": [(5,) * 9 for _ in right],
        "shifted": [row[1:] for row in right],
        "one wrong": [(*row[:2], 6, *row[3:]) for row in right],
        "none": [() for _ in right],
    }.items():
        draft = WholeTextDraft()
        draft.texts = texts
        speculation = Speculation(draft, num_draft_tokens=4)
        hypotheses = flat(search(family, memory, targets, options, None, speculation))
        assert [(row.tokens, row.finished) for row in hypotheses] == [
            (row.tokens, row.finished) for row in wanted
        ]
        accepted = sum(report.accepted for report in speculation.report())
        if name == "right" and beam_size == 1:
            # All but the first token, which is read off the prompt, and one more in every pass.
            assert accepted >= sum(max(0, len(row) - 1 - -(-len(row) // 5)) for row in right)
        if name in ("wrong", "none"):
            assert accepted <= sum(row.count(5) for row in right)
