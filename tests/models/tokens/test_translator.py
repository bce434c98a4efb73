"""Models that read tokens: the same from speech and text, alone and in a batch, saved and loaded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sprachbund.data.batching import BatchingOptions
from sprachbund.data.loading import batches
from sprachbund.data.manifest import Manifest
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.engines.choice import on_torch
from sprachbund.engines.native_engine import why_not_family
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Target
from sprachbund.models.card import Card
from sprachbund.models.io import load, save
from sprachbund.models.tokens.config import HEADS
from sprachbund.models.tokens.conformer import TokenConformer
from sprachbund.models.tokens.reader import UnitReader
from sprachbund.models.tokens.vocabulary import REPEAT
from sprachbund.units.dataset import Mixing, SpokenSentences, TokenDataset
from tests.units.made import conformer, tones
from tests.units.translators import PAIRS, Spoken, model_of, speak, talkative

PLAN = BatchingOptions(batch_s=1000, max_utterances=6, max_duration_s=1000)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Spoken:
    return speak(tmp_path_factory.mktemp("translator"))


def batches_of(made: Spoken, model: TokenConformer) -> dict[str, Any]:
    parts = [SpokenSentences(made.encoded, PAIRS, as_text=as_text) for as_text in (False, True)]
    assert isinstance(model.reader, UnitReader)
    supply = TokenDataset(parts, model.config, model.reader, Mixing(), sample=False)
    return {batch.kind: batch for batch in batches(supply, PLAN, 0)}


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_learns_and_does_not_ask_what_kind_of_data_it_is(made: Spoken, head: str) -> None:
    model = model_of(made.units, head=head).train()
    result = batches_of(made, model)
    for kind, batch in result.items():
        loss = model.loss(batch)
        other = model.loss(replace(batch, kind="other"))
        assert torch.equal(loss.total, other.total)
        assert (loss.heads["ctc"].count > 0) == (kind == "speech")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    totals = []
    for _ in range(30):
        loss = model.loss(result["speech"])
        optimizer.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        totals.append(float(loss.total.detach()))
    assert totals[-1] < 0.8 * totals[0]


@pytest.mark.parametrize("head", HEADS)
def test_a_batch_costs_what_its_rows_cost(made: Spoken, head: str) -> None:
    model = model_of(made.units, head=head, strides=1)
    batch = batches_of(made, model)["speech"]
    whole = model.loss(batch)
    total, counts = 0.0, 0
    for row in range(batch.num_utterances):
        loss = model.loss(batch.select(torch.tensor([row])))
        total, counts = total + float(loss.total.detach()), counts + loss.counts["dropped"]
    assert float(whole.total.detach()) == pytest.approx(total, rel=1e-4)
    assert whole.counts["dropped"] == counts


def test_terms_that_ctc_cannot_align_are_dropped_and_counted(made: Spoken) -> None:
    model = model_of(made.units, head="ctc_attention", strides=3)
    batch = batches_of(made, model)["speech"]
    loss = model.loss(batch)
    frames = -(-batch.num_frames // 8)
    assert loss.counts["dropped"] >= int((batch.num_targets - 1 > frames).sum()) > 0
    assert torch.isfinite(loss.total)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("beam", [1, 4])
def test_what_is_written_depends_neither_on_the_batch_nor_holds_units(
    made: Spoken, head: str, beam: int
) -> None:
    model = talkative(model_of(made.units, head=head))
    family: Family = model
    options = DecodingOptions(beam_size=beam, max_tokens=12)
    target = Target(language="fr")
    manifest = Manifest(made.corpus)
    samples = [manifest.samples(number) for number in range(4)]
    together = search(family, model.encode(model.features(samples)), [[target]] * 4, options)
    special = set(model.written.ids[model.written.suppressed].tolist())
    for each, row in zip(samples, together, strict=True):
        alone = search(family, model.encode(model.features([each])), [[target]], options)[0]
        assert row[0].tokens == alone[0].tokens
        assert row[0].log_probability == pytest.approx(alone[0].log_probability, abs=1e-3)
        ids = model.written.ids[list(row[0].tokens)] if row[0].tokens else np.zeros(0, int)
        assert not made.units.vocabulary.is_unit[ids].any()
        assert head == "transducer" or not special & set(
            ids.tolist()
        )  # it has no list of what is not to be written
    assert any(row[0].tokens for row in together)


def test_equal_tokens_give_equal_states_whoever_read_them(made: Spoken) -> None:
    model, text = model_of(made.units), "fade"
    read = model.text_features([text])
    by_hand = [t for t in made.units.vocabulary.encode_text(text) for _ in range(2)]
    assert read.values[0].tolist() == [*by_hand, made.units.vocabulary.end]
    spoken = model.tokens_read(model.reader.text([text]))
    torch.testing.assert_close(model.encode(read).states, model.encode(spoken).states)


def test_speech_is_read_as_it_was_encoded(made: Spoken) -> None:
    model = model_of(made.units)
    manifest = Manifest(made.corpus)
    for number, utterance in enumerate(made.encoded):
        if number < 3:
            read = model.reader.speech([manifest.samples(number)])[0]
            assert made.units.vocabulary.decode_units(read) == utterance.units
    with_repeats = UnitReader(made.units, 2.0, keep_repeats=True)
    read = with_repeats.speech([manifest.samples(0)])[0]
    assert made.units.vocabulary.decode_units(read) == made.encoded[0].with_repeats


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_model_is_the_same(made: Spoken, head: str, tmp_path: Path) -> None:
    model = model_of(made.units, head=head)
    save(model, tmp_path / "m", card=Card(name="tones"))
    again = load(tmp_path / "m")
    assert isinstance(again, TokenConformer)
    assert again.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert again.reader.directory == tmp_path / "m" / "units"
    assert load(tmp_path / "m").pairs() == {("de", "fr"), ("en", "fr")}


def test_a_model_with_other_units_is_refused(made: Spoken, tmp_path: Path) -> None:
    model = model_of(made.units)
    save(model, tmp_path / "m")
    config = (tmp_path / "m" / "config.json").read_text()
    changed = config.replace(made.units.identity.kmeans, "f" * 64)
    (tmp_path / "m" / "config.json").write_text(changed)
    with pytest.raises(SprachbundError, match=r"is of another k-means .* than the model was trained with"):
        load(tmp_path / "m")


def test_a_missing_or_other_speech_encoder_is_named_and_text_needs_none(made: Spoken, tmp_path: Path) -> None:
    model = model_of(made.units)
    save(model, tmp_path / "m")
    (tmp_path / "m" / "encoder").symlink_to(conformer(tmp_path / "other"))
    (tmp_path / "other" / "config.json").write_text((tmp_path / "other" / "config.json").read_text() + " ")
    again: Any = load(tmp_path / "m")
    with pytest.raises(SprachbundError, match="is not the encoder that the units"):
        again.features([tones("abc")])
    assert again.text_features(["abc"]).values.shape[0] == 1


def test_speech_without_a_frame_is_refused(made: Spoken) -> None:
    with pytest.raises(SprachbundError, match="0 samples of speech are no frame"):
        model_of(made.units).features([np.zeros(0, np.float32)])


def test_unknown_languages_and_times_of_words_are_refused(made: Spoken) -> None:
    model = model_of(made.units)
    with pytest.raises(SprachbundError, match="does not write 'it'; it writes fr"):
        model.prompt(Target(language="it"))
    with pytest.raises(SprachbundError, match="no token for it"):
        model_of(made.units, pairs=(("de", "it"),))
    memory = model.encode(model.text_features(["abc"]))
    with pytest.raises(SprachbundError, match="do not say when they were spoken"):
        model.step(torch.tensor([[1]]), model.start(memory), weights=[])


def test_ctc_alone_does_not_go_on_from_a_text(made: Spoken) -> None:
    model = model_of(made.units, head="ctc")
    memory = model.encode(model.text_features(["abc"]))
    with pytest.raises(SprachbundError, match="cannot go on from a text"):
        search(model, memory, [[Target(language="fr", prefix=(3,))]])


def test_marks_stand_for_repetitions_of_text_alone(made: Spoken, tmp_path: Path) -> None:
    plain, marked = (model_of(made.units, ratio=3.0, mark_repeats=mark) for mark in (False, True))
    texts = ["abc", "fade abc"]
    for a, b in zip(plain.reader.text(texts), marked.reader.text(texts), strict=True):
        assert len(a) == len(b)
        assert [token for token in b if token != REPEAT] == a[::3]
    result = {kind: batch.features for kind, batch in batches_of(made, marked).items()}
    same = {kind: batch.features for kind, batch in batches_of(made, plain).items()}
    assert torch.equal(result["speech"], same["speech"])
    assert not torch.equal(result["text"], same["text"])
    together = marked.encode(marked.text_features(texts))  # padding has the mark's id
    alone = marked.encode(marked.text_features(texts[:1]))
    assert alone.num_frames is not None
    torch.testing.assert_close(together.states[:1, : alone.num_frames[0]], alone.states)
    save(marked, tmp_path / "model")
    again = load(tmp_path / "model")
    assert isinstance(again, TokenConformer)
    assert again.reader.text(texts) == marked.reader.text(texts)


@torch.inference_mode()
def test_free_embeddings_write_with_a_matrix_of_their_own(made: Spoken, tmp_path: Path) -> None:
    tied, free = (model_of(made.units, head="ctc_attention", tied=tied) for tied in (True, False))
    rows = {name for name in free.state_dict() if name not in tied.state_dict()}
    assert rows == {"decoder.output_head.weight"}
    memory = free.encode(free.text_features(["abc"]))
    tokens = torch.tensor([[*free.prompt(Target(language="fr")), 4, 5, 6]])
    whole = free.decoder.logits(free.decoder(tokens, memory.states, memory.num_frames))
    cache = free.start(memory)
    steps = torch.cat([free.step(token, cache) for token in tokens.split(1, dim=1)], dim=1)
    torch.testing.assert_close(whole, steps)
    with torch.no_grad():
        free.decoder.embedding.weight.mul_(0)
    assert free.decoder.logits(torch.randn(1, 16)).abs().max() > 0
    save(free, tmp_path / "model")
    again: Any = load(tmp_path / "model")
    assert torch.equal(again.decoder.output_matrix, free.decoder.output_matrix)
    fused: Any = on_torch(again, "fp32")
    torch.testing.assert_close(
        fused.decoder.step(tokens, fused.decoder.start(memory.states, memory.num_frames)),
        free.step(tokens, free.start(memory)),
    )
    assert why_not_family(again) == "its decoder has an output matrix of its own"
