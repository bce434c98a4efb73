"""What a manifest says of mixed speech reaches the batch: languages, spans at any speed, errors by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sprachbund.data.language_spans import languages_in, timed_spans
from sprachbund.data.loading import Corpus, ExampleOptions, collate
from sprachbund.data.manifest import Manifest, ManifestWriter, Utterance
from sprachbund.errors import SprachbundError
from tests.training import made

SPANS = [{"language": "en", "start_s": 0.0, "end_s": 0.6}, {"language": "de", "start_s": 0.6, "end_s": 1.0}]


def utterance(**custom: Any) -> Utterance:
    return Utterance(
        id="u1", duration_s=1.0, text="a", language="en", speaker="", translations={}, custom=custom
    )


@pytest.mark.parametrize(
    ("custom", "languages"),
    [
        ({}, ("en",)),
        ({"spans": SPANS}, ("en", "de")),
        ({"spans": SPANS[1:]}, ("de",)),  # Fisher: English alone in Spanish speech
        ({"languages": ["es", "en"], "spans": SPANS}, ("es", "en")),
    ],
)
def test_languages_that_occur(custom: dict[str, Any], languages: tuple[str, ...]) -> None:
    assert languages_in(utterance(**custom)) == languages
    assert languages_in(replace(utterance(), language="")) == ()


def test_times_that_are_estimated_or_missing_are_none() -> None:
    assert timed_spans(utterance(spans=SPANS)) == ((0.0, 0.6, "en"), (0.6, 1.0, "de"))
    assert timed_spans(utterance(spans=SPANS, spans_estimated=True)) == ()
    assert timed_spans(utterance(spans=[{"language": "en"}])) == ()
    assert timed_spans(utterance()) == ()


@pytest.mark.parametrize(
    ("start_s", "end_s", "said"),
    [
        (0.3, 0.9, "begins before the last one ends, at 0.6 s"),
        (0.6, 1.4, "does not lie in 1 s of audio"),
        (0.9, 0.7, "does not lie"),
    ],
)
def test_spans_that_cannot_be_are_named(start_s: float, end_s: float, said: str) -> None:
    with pytest.raises(SprachbundError, match=f"u1: the span of de.* {said}"):
        timed_spans(utterance(spans=[SPANS[0], {"language": "de", "start_s": start_s, "end_s": end_s}]))


def corpus(directory: Path, **custom: Any) -> Corpus:
    with ManifestWriter(directory) as writer:
        for name, extra in (("mixed", {"spans": SPANS, **custom}), ("plain", {})):
            writer.add(
                np.full(16_000, 0.1, np.float32),
                text="one",
                language="en",
                speaker="",
                utterance_id=name,
                custom=extra,
            )
        writer.add(np.zeros(16_000, np.float32), text="", language="", speaker="", utterance_id="silence")
    plain = made.make_training_data(directory)
    return Corpus(
        [(Manifest(directory), 1.0)],
        plain.examples,
        ExampleOptions(mixed=True, rows_per_utterance=2, time_masks=0),
    )


def test_batches_carry_languages_and_spans(tmp_path: Path) -> None:
    data = corpus(tmp_path)
    batch = collate([data[0, i, 1.0] for i in range(3)], 2)
    assert batch.mixture is not None
    assert batch.mixture.languages.tolist() == [[True, True], [True, False], [False, False]]
    assert batch.mixture.spans == (((0.0, 0.6, 0), (0.6, 1.0, 1)), (), ())
    faster = data[0, 0, 1.25]
    assert [round(s[1], 6) for s in faster.spans] == [0.48, 0.8]
    assert faster.features.shape[0] == pytest.approx(0.8 * batch.num_frames[0], abs=1)
    chosen = batch.select(torch.tensor([2, 0]))
    assert chosen.mixture is not None
    assert chosen.mixture.spans == ((), batch.mixture.spans[0])
    assert torch.equal(chosen.mixture.languages, batch.mixture.languages[[2, 0]])
    assert torch.equal(chosen.targets, batch.targets[[4, 5, 0, 1]])
    assert torch.equal(chosen.features, batch.features[[2, 0]])


def test_nobody_gets_what_nobody_asked_for(tmp_path: Path) -> None:
    corpus(tmp_path)
    plain = made.make_training_data(tmp_path)
    batch = collate([plain[0, i, 1.0] for i in range(2)], 2)
    assert (batch.mixture, batch.spoken, batch.sides) == (None, None, None)


def test_a_language_inside_that_the_model_does_not_hear(tmp_path: Path) -> None:
    data = corpus(tmp_path, languages=["en", "fr"])
    with pytest.raises(SprachbundError, match="mixed holds speech in fr, the model hears only en, de"):
        data[0, 0, 1.0]
