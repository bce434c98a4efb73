from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sprachbund.data.batching import BatchingOptions
from sprachbund.data.bitext import read_bitext
from sprachbund.data.loading import batches
from sprachbund.errors import SprachbundError
from sprachbund.models.tokens.config import TokenConfig
from sprachbund.models.tokens.reader import UnitReader
from sprachbund.models.tokens.strings import downsample
from sprachbund.units.dataset import (
    Mixing,
    SpokenSentences,
    TokenDataset,
    WrittenSentences,
    first_epoch_behind,
)
from sprachbund.units.encoded import EncodedCorpus
from sprachbund.units.lengths import mean_length_ratio
from tests.units.made import words
from tests.units.translators import PAIRS, config, speak
from tests.units.translators import Spoken as Made

PLAN = BatchingOptions(batch_s=20, max_utterances=4, max_duration_s=100)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return speak(tmp_path_factory.mktemp("supply"))


def bitext(directory: Path, count: int = 60) -> WrittenSentences:
    path = directory / "pairs.tsv"
    lines = [f"{word}\t{word.upper()}" for word in words(count, seed=9)]
    path.write_text("\n".join(["de\tfr", *lines]) + "\n")
    return WrittenSentences(read_bitext([path], "de", "fr"))


def supply_of(
    made: Made, *more: WrittenSentences, mixing: Mixing | None = None, **changes: Any
) -> TokenDataset:
    known = {name: changes.pop(name) for name in ("sample", "speech_only_from") if name in changes}
    given = config(**changes)
    mixing = mixing or Mixing()
    parts: list[Any] = [SpokenSentences(made.encoded, PAIRS), *more]
    if mixing.text:
        parts.insert(1, SpokenSentences(made.encoded, PAIRS, as_text=True))
    return TokenDataset(parts, given, UnitReader(made.units, given.ratio), mixing, **known)


def test_speech_and_text_of_the_same_triple_want_the_same(made: Made) -> None:
    supply, vocabulary = supply_of(made, sample=False), made.units.vocabulary
    for index, utterance in enumerate(made.encoded):
        spoken, written = supply[0, index, 1.0], supply[0, index + len(made.encoded), 1.0]
        assert (spoken.kind, written.kind) == ("speech", "text")
        assert vocabulary.decode_units(spoken.source) == utterance.units
        assert spoken.source[-1] == written.source[-1] == vocabulary.end
        assert downsample(written.source[:-1], 2.0) == vocabulary.encode_text(utterance.text)
        assert spoken.target == written.target
        assert spoken.target_language == written.target_language
        assert spoken.source_language == written.source_language == ["de", "en"].index(utterance.language)
        assert vocabulary.is_unit[spoken.source[:-1]].all()
        assert not vocabulary.is_unit[written.source].any()
        assert spoken.transcript
        assert not written.transcript


def test_an_epoch_goes_through_everything_once_in_batches_of_one_kind(made: Made, tmp_path: Path) -> None:
    supply = supply_of(made, bitext(tmp_path, 10))
    plan = supply.plan(PLAN, 0)
    assert sorted(np.concatenate(plan).tolist()) == list(range(12 + 12 + 10))
    for batch in batches(supply, PLAN, 0):
        assert batch.kind in ("speech", "text", "bitext")
        assert batch.weight == (1.0 if batch.kind == "speech" else 0.5)
        assert batch.transcripts is not None
        assert bool((batch.transcripts.num_tokens > 0).any()) == (batch.kind == "speech")
        assert batch.features.dtype == torch.long
        assert batch.to("cpu").kind == batch.kind


def test_text_from_outside_is_at_most_twice_the_speech_and_takes_its_turn(made: Made, tmp_path: Path) -> None:
    supply = supply_of(made, bitext(tmp_path, 60), mixing=Mixing(text=False, external_ratio=2.0))
    seen: set[int] = set()
    for epoch in range(3):
        outside = [i for batch in supply.plan(PLAN, epoch) for i in batch.tolist() if i >= 12]
        assert len(outside) == len(set(outside)) == 24
        seen |= set(outside)
    assert len(seen) == 60


def test_texts_from_outside_share_what_an_epoch_takes_of_them(made: Made, tmp_path: Path) -> None:
    parts = []
    for count in (20, 40):
        (tmp_path / str(count)).mkdir()
        parts.append(bitext(tmp_path / str(count), count))
    supply = supply_of(made, *parts, mixing=Mixing(text=False, external_ratio=2.0))
    outside = [i for batch in supply.plan(PLAN, 0) for i in batch.tolist() if i >= 12]
    assert len(outside) == 24
    assert sum(i >= 12 + 20 for i in outside) == 16


def test_the_last_epochs_may_be_of_speech_alone(made: Made) -> None:
    supply = supply_of(made)
    steps = len(supply.plan(PLAN, 0))
    assert first_epoch_behind(supply, PLAN, 2 * steps) == 2
    assert first_epoch_behind(supply, PLAN, 2 * steps + 1) == 3
    supply.speech_only_from = 2
    kinds = [{batch.kind for batch in batches(supply, PLAN, epoch)} for epoch in (1, 2)]
    assert kinds == [{"speech", "text"}, {"speech"}]


def test_draws_depend_on_seed_epoch_and_sentence_alone(made: Made) -> None:
    supply, again = supply_of(made), supply_of(made)
    assert supply[3, 5, 1.0] == again[3, 5, 1.0]
    assert supply[3, 5, 1.0].target == supply[4, 5, 1.0].target
    assert any(supply[3, i, 1.0].source != supply[4, i, 1.0].source for i in range(24))
    likeliest = supply_of(made, sample=False)
    assert likeliest[3, 5, 1.0] == likeliest[4, 5, 1.0]


def test_text_is_as_long_as_speech_and_measured_by_it(made: Made) -> None:
    vocabulary = made.units.vocabulary
    spoken = [len(vocabulary.encode_units(u.with_repeats)) for u in made.encoded]
    ratio = mean_length_ratio(spoken, [len(vocabulary.encode_text(u.text)) for u in made.encoded])
    assert ratio > 1.2
    given = config(ratio=ratio)
    parts = [
        SpokenSentences(made.encoded, PAIRS, keep_repeats=True),
        SpokenSentences(made.encoded, PAIRS, as_text=True),
    ]
    supply = TokenDataset(
        parts, given, UnitReader(made.units, ratio, keep_repeats=True), Mixing(), sample=False
    )
    speech, text = supply.durations_s[:12], supply.durations_s[12:]
    assert abs(text.sum() / speech.sum() - 1) < 0.2
    seconds = sum(utterance.duration_s for utterance in made.encoded)
    assert speech.sum() == pytest.approx(seconds, rel=0.2)


def test_what_ctc_cannot_align_is_counted_and_named(made: Made) -> None:
    supply = supply_of(made, strides=3, head="ctc_attention")
    first = supply.too_long["targets"][0]
    line = next(line for line in supply.lines(100) if "targets" in line)
    assert f"the first is {first.name} ({first.needed} frames wanted, {first.available} there)" in line
    assert line.startswith(f"{len(supply.too_long['targets'])} targets are longer than CTC can align")
    assert "targets" not in supply_of(made, strides=3, head="attention").too_long
    assert "transcripts" in supply_of(made, strides=3, head="attention").too_long
    assert not supply_of(made, strides=3, head="attention", source_ctc_weight=0.0).too_long


def test_ctc_alone_needs_something_that_it_can_align(made: Made, tmp_path: Path) -> None:
    long = tmp_path / "pairs.tsv"
    long.write_text("de\tfr\n" + "a\tABCDEFABCDEF\n" * 3)
    given = config(strides=3, head="ctc")
    with pytest.raises(
        SprachbundError, match=r"CTC can align none of 3 targets, the first is .*pairs\.tsv:2"
    ):
        TokenDataset(
            [WrittenSentences(read_bitext([long], "de", "fr"))], given, UnitReader(made.units, 2.0), Mixing()
        )


def test_what_the_model_cannot_write_is_left_out_counted_and_named(made: Made) -> None:
    supply = supply_of(made, max_tokens=5)
    assert supply.left_out
    assert any(line.startswith(f"{len(supply.left_out)} sentences are longer") for line in supply.lines(100))
    planned = np.concatenate(supply.plan(PLAN, 0)).tolist()
    assert len(planned) == 24 - len(supply.left_out)
    assert any("sources are longer than" in line for line in supply.lines(0.5))
    with pytest.raises(SprachbundError, match="none of 24 sentences can be used"):
        supply_of(made, max_tokens=2)


def test_a_missing_translation_is_counted(made: Made) -> None:
    assert SpokenSentences(made.encoded, [("de", "fr"), ("de", "es")]).missing == 6
    assert len(SpokenSentences(made.encoded, [("de", "fr")])) == 6


def test_units_of_another_kmeans_are_refused(made: Made, tmp_path: Path) -> None:
    manifest = (made.encoded.directory / "manifest.json").read_text()
    other = tmp_path / "other"
    other.mkdir()
    for path in made.encoded.directory.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "manifest.json").write_text(manifest.replace(made.units.identity.kmeans, "0" * 64))
    with pytest.raises(SprachbundError, match="of another k-means"):
        EncodedCorpus(other, made.units)


def test_an_utterance_without_units_is_named(made: Made, tmp_path: Path) -> None:
    class Emptied:
        directory = made.encoded.directory

        def __iter__(self) -> Any:
            from dataclasses import replace

            return (replace(u, units="", durations=()) for u in made.encoded)

    with pytest.raises(SprachbundError, match="u000 has no units"):
        SpokenSentences(Emptied(), PAIRS)  # type: ignore[arg-type]  # reads as a corpus does


def test_drawn_pieces_are_never_more_than_the_model_reads(made: Made) -> None:
    """Other segmentations than the likeliest have more pieces; mBART has no position for them."""
    mixing = Mixing(text=False, sampling=0.01)
    longest = int(supply_of(made, mixing=mixing, sample=False)._lengths.max())

    class Narrow(TokenConfig):
        @property
        def max_source_tokens(self) -> Any:
            return longest

    def drawn(supply: TokenDataset) -> int:
        return max(len(supply[epoch, i, 1.0].source) for epoch in range(4) for i in range(len(supply)))

    given = Narrow(**config().model_dump())
    reader = UnitReader(made.units, given.ratio)
    assert drawn(supply_of(made, mixing=mixing)) > longest
    assert drawn(TokenDataset([SpokenSentences(made.encoded, PAIRS)], given, reader, mixing)) == longest


def test_speech_that_is_too_long_for_a_batch_is_named(made: Made) -> None:
    supply = supply_of(made)
    with pytest.raises(SprachbundError, match=r"no speech has .* set training\.max_duration_s higher"):
        supply.speech_share(BatchingOptions(batch_s=20, max_utterances=4, max_duration_s=0.01))
