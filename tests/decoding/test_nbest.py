"""The next best texts of a beam: those that it ranks next, in every search, and in results."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sprachbund.decoding.autoregressive import beam_search
from sprachbund.decoding.ctc import prefix_beam
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.result import Segment
from sprachbund.decoding.search import search
from sprachbund.decoding.state import start_batch
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from tests.decoding.families import FAMILIES
from tests.decoding.tiny_family import TinyFamily, random_memory
from tests.models.contract import heard
from tests.models.fastconformer.support import sound

TARGET = Target(language="en", source="de")
OPTIONS = DecodingOptions(max_tokens=6, beam_size=4, nbest=3, draft="none")


@torch.inference_mode()
def test_they_are_the_next_rows_of_the_beam() -> None:
    family, memory = TinyFamily(seed=1), random_memory([12, 7], 1)
    targets = [[TARGET], [TARGET]]
    ranked = beam_search(
        family, start_batch(family, memory, targets, OPTIONS, None), beam_size=4, length_penalty=1.0
    )
    for [found], wanted in zip(search(family, memory, targets, OPTIONS), ranked, strict=True):
        assert replace(found, others=()) == wanted[0]
        assert [*found.others] == wanted[1:3]
        scores = [h.score for h in (found, *found.others)]
        assert scores == sorted(scores, reverse=True)
    [alone] = search(family, random_memory([12], 1), [[TARGET]], replace(OPTIONS, nbest=1))[0]
    assert alone.others == ()


@torch.inference_mode()
@pytest.mark.parametrize("name", ["Parakeet CTC", "Parakeet RNNT", "Canary", "conformer"])
def test_every_search_has_them(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name](tmp_path)
    source, target = min(pair for pair in family.pairs() if pair[0] == pair[1])
    memory = family.encode(family.features([sound(1.3, 1)]))
    asked = Target(language=target, source=source)
    [found] = search(family, memory, [[asked]], replace(OPTIONS, max_tokens=None))[0]
    assert len(found.others) == 2
    assert len({found.tokens, *(other.tokens for other in found.others)}) == 3
    if name == "Parakeet CTC":
        assert family.capabilities.ctc is not None
        assert memory.num_frames is not None
        rows = family.capabilities.ctc.ctc_log_probs(memory, [[asked]])[0][: int(memory.num_frames[0])]
        ranked = prefix_beam(rows.double().numpy(), 4, family.capabilities.ctc.blank)
        assert [h.log_probability for h in (found, *found.others)] == pytest.approx(
            [s for _, s in ranked[:3]]
        )


def test_results_have_them(tmp_path: Path) -> None:
    family = FAMILIES["conformer"](tmp_path)
    options = replace(OPTIONS, guard=replace(OPTIONS.guard, enabled=False))
    plain = heard(family, "en", "en", replace(options, nbest=1))
    result = heard(family, "en", "en", options)
    assert [s.text for s in result.segments] == [s.text for s in plain.segments]
    for segment in result.segments:
        assert len(segment.alternatives) == 2
        assert Segment.from_dict(json.loads(json.dumps(segment.to_dict()))).alternatives[0].text == (
            segment.alternatives[0].text
        )
    assert "alternatives" not in plain.segments[0].to_dict()


def test_a_cascade_has_those_of_its_transcript_alone(tmp_path: Path) -> None:
    family = FAMILIES["cascade"](tmp_path)
    source, target = next(pair for pair in sorted(family.pairs()) if pair[0] != pair[1])
    options = replace(OPTIONS, guard=replace(OPTIONS.guard, enabled=False))
    assert not any(s.alternatives for s in heard(family, target, source, options).segments)
    assert any(s.alternatives for s in heard(family, source, source, options).segments)


def test_more_than_the_beam_are_refused() -> None:
    with pytest.raises(SprachbundError, match="a beam of 1 has no more texts; set beam_size to 2"):
        DecodingOptions(nbest=2)
