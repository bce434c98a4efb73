"""What Seamless is taught: the loss of transformers, the features of decoding, masks that know of stacked frames."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sprachbund.data.loading import Example, ExampleOptions, collate, spec_augment
from sprachbund.errors import SprachbundError
from sprachbund.models import seamless
from sprachbund.models.seamless.model import SeamlessExamples
from tests.models.seamless.support import VERSIONS, make_checkpoint, make_pair

SOUNDS = [0.1 * np.random.default_rng(n).standard_normal(n).astype(np.float32) for n in (9_000, 16_000)]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_loss_is_that_of_transformers(version: str, tmp_path: Path) -> None:
    theirs, model = make_pair(tmp_path, version)
    examples = SeamlessExamples(model, ["en", "fr"])
    texts = [("fr", "le chien court"), ("en", "the dog")]
    for sound, (target, text) in zip(SOUNDS, texts, strict=True):
        features, num_frames = examples.features(sound, lambda x: x)
        row = examples.row(text, "en", target)
        example = Example(
            features=features,
            source_language=examples.number("en"),
            rows=[row],
            num_frames=num_frames,
        )
        loss = model.loss(collate([example], 1))
        given = model.features([sound])
        torch.testing.assert_close(features, given.values[0], atol=0, rtol=0)
        assert num_frames == int(given.num_frames[0])
        expected = theirs(
            input_features=given.values,
            decoder_input_ids=torch.tensor([[model.end_token, row[0], *row[1][:-1]]]),
            labels=torch.tensor([[-100, *row[1]]]),
        ).loss
        torch.testing.assert_close(loss.total / loss.num_tokens, expected, rtol=1e-4, atol=1e-5)


def test_a_masked_bin_is_masked_in_both_stacked_frames(tmp_path: Path) -> None:
    examples = SeamlessExamples(make_pair(tmp_path, "seamless_m4t")[1], ["en"])
    options = ExampleOptions(time_masks=0, frequency_masks=1, max_frequency_mask=30)
    plain, _ = examples.features(SOUNDS[0], lambda x: x)
    masked, _ = examples.features(SOUNDS[0], lambda x: spec_augment(x, np.random.default_rng(3), options))
    changed = (masked != plain).all(0)
    assert 0 < int(changed.sum()) < 60
    assert torch.equal(changed[:80], changed[80:])


def test_a_language_heard_anew_is_saved(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "old", "seamless_m4t_v2")
    model = seamless.load(tmp_path / "old")
    known = model.source_languages
    assert "gsw" not in known
    model.hear(["gsw"])
    seamless.save(model, tmp_path / "new", bits=16)
    again = seamless.load(tmp_path / "new")
    assert again.source_languages == (*known, "gsw")
    assert ("gsw", "fr") in again.pairs()


def test_languages_that_cannot_be_taught_are_named(tmp_path: Path) -> None:
    model = make_pair(tmp_path, "seamless_m4t")[1]
    with pytest.raises(SprachbundError, match="does not hear gsw"):
        SeamlessExamples(model, ["gsw", "en"])
    with pytest.raises(SprachbundError, match="writes none of de"):
        SeamlessExamples(model, ["de"])
