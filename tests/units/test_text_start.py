"""Models of units that start from mBART-50: equal to transformers on text, and the same from speech and text after."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from transformers import MBart50Tokenizer, MBartForConditionalGeneration

from sprachbund.data.batching import BatchingOptions
from sprachbund.data.loading import batches
from sprachbund.data.manifest import Manifest
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.texts import translate_texts
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Features, Target
from sprachbund.models.io import load, save
from sprachbund.models.tokens.config import MBART_50, MBART_50_TOKENS, MbartConfig
from sprachbund.models.tokens.directory import Units
from sprachbund.models.tokens.mbart import TokenMbart, language_code, new_rows
from sprachbund.models.tokens.reader import UnitReader
from sprachbund.nn.text_to_text import MbartDecoder, MbartEncoder
from sprachbund.units.dataset import Mixing, SpokenSentences, TokenDataset
from sprachbund.units.mbart import kept_rows, start_from_mbart, texts_of, units_with_mbart
from tests.units.made import words
from tests.units.mbart import write_mbart
from tests.units.translators import PAIRS, Spoken, speak

LANGUAGES = ("de", "en", "fr")
TARGET = Target(language="fr", source="de")
PLAN = BatchingOptions(batch_s=1000, max_utterances=6, max_duration_s=1000)


@dataclass(frozen=True)
class Started:
    """A model, what it started from, and the units of both."""

    spoken: Spoken
    checkpoint: Path
    units: Units
    model: TokenMbart

    @property
    def parts(self) -> list[SpokenSentences]:
        return [SpokenSentences(self.spoken.encoded, PAIRS, as_text=text) for text in (False, True)]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Started:
    root = tmp_path_factory.mktemp("start")
    spoken, checkpoint = speak(root), write_mbart(root / "mbart")
    parts = [SpokenSentences(spoken.encoded, PAIRS, as_text=text) for text in (False, True)]
    units = units_with_mbart(spoken.units, checkpoint, parts, LANGUAGES, root / "with")
    torch.manual_seed(0)
    model = start_from_mbart(units, checkpoint, shaped).eval()
    return Started(spoken, checkpoint, units, model)


def shaped(shape: Any, **changes: Any) -> MbartConfig:
    return MbartConfig(**{**shape.model_dump(), "pairs": PAIRS, "ratio": 1.0, **changes})


@pytest.fixture(scope="module")
def reference(started: Started) -> Any:
    return MBartForConditionalGeneration.from_pretrained(started.checkpoint).eval()


@pytest.fixture(scope="module")
def tokenizer(started: Started) -> Any:
    """transformers' own reading of the same SentencePiece model."""
    return MBart50Tokenizer.from_pretrained(started.checkpoint, src_lang="de_DE", tgt_lang="fr_XX")


@pytest.fixture(scope="module")
def rows(started: Started) -> torch.Tensor:
    """transformers' token of each of ours that may be written."""
    path = str(started.checkpoint / "sentencepiece.bpe.model")
    return kept_rows(started.units, sentencepiece.SentencePieceProcessor(model_file=path))


def in_german(model: TokenMbart, features: Features) -> Features:
    german = model.source_languages.index("de")
    return replace(features, source_language=torch.full((len(features.values),), german))


def test_rows_and_pieces_are_those_of_transformers_tokenizer(
    started: Started, tokenizer: Any, rows: torch.Tensor
) -> None:
    vocabulary, written = started.units.vocabulary, started.model.written
    names = {vocabulary.piece(int(joint)): int(row) for joint, row in zip(written.ids, rows, strict=True)}
    for name, row in names.items():
        special = {"<blank>": "<pad>", **{f"<{tag}>": language_code(tag) for tag in LANGUAGES}}
        assert tokenizer.convert_tokens_to_ids(special.get(name, name)) == row
    for text in texts_of(started.parts) - {""}:
        ours = rows[written.of(vocabulary.encode_text(text))].tolist()
        assert [tokenizer.lang_code_to_id["de_DE"], *ours, 2] == tokenizer(text).input_ids
        assert started.model.decode_text(written.of(vocabulary.encode_text(text))) == text
    assert len(rows) < started.model.decoder.embedding.num_embeddings + 1 < len(tokenizer)
    assert "▁xyz" not in names
    assert vocabulary.decode_text(vocabulary.encode_text("fade bead")) == "fade bead"  # not in the texts


@torch.inference_mode()
def test_logits_of_text_are_those_of_transformers(
    started: Started, reference: Any, tokenizer: Any, rows: torch.Tensor
) -> None:
    texts, model = words(5), started.model
    given = tokenizer(texts, return_tensors="pt", padding=True)
    target = [tokenizer.lang_code_to_id["fr_XX"], *rows[[5, 9, 7, 11]].tolist()]
    wanted = reference(**given, decoder_input_ids=torch.tensor([[2, *target]] * len(texts))).logits[..., rows]
    memory = model.encode(in_german(model, model.text_features(texts)))
    tokens = torch.tensor([[*model.prompt(TARGET), 5, 9, 7, 11]] * len(texts))
    cache = model.start(memory)
    stepped = torch.cat([model.step(tokens[:, [i]], cache) for i in range(tokens.shape[1])], 1)
    torch.testing.assert_close(stepped, wanted, atol=1e-4, rtol=1e-4)
    whole = model.decoder.logits(model.decoder(tokens, memory.states, memory.num_frames))
    torch.testing.assert_close(whole, wanted, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_greedy_search_writes_what_transformers_generates(
    started: Started, reference: Any, tokenizer: Any, rows: torch.Tensor
) -> None:
    texts, model, longest = words(6), started.model, 9
    written = {int(row) for row, hidden in zip(rows, model.suppressed(TARGET), strict=True) if not hidden}
    generated = reference.generate(
        **tokenizer(texts, return_tensors="pt", padding=True),
        decoder_input_ids=torch.tensor([[2, tokenizer.lang_code_to_id["fr_XX"]]] * len(texts)),
        num_beams=1,
        do_sample=False,
        max_new_tokens=longest,
        forced_eos_token_id=None,
        suppress_tokens=[token for token in range(len(tokenizer)) if token not in written],
    )
    memory = model.encode(in_german(model, model.text_features(texts)))
    result = search(model, memory, [[TARGET]] * len(texts), DecodingOptions(beam_size=1, max_tokens=longest))
    for row, text in zip(result, generated.tolist(), strict=True):
        theirs = [token for token in text[2:] if token not in (1, 2)]
        assert rows[list(row[0].tokens)].tolist() == theirs
    assert any(row[0].tokens for row in result)


def test_rows_of_units_are_drawn_around_those_of_text_and_never_written(started: Started) -> None:
    model = started.model
    pieces = model.decoder.embedding.weight[~torch.from_numpy(model.written.suppressed)].detach()[:-1]
    torch.manual_seed(0)
    assert model.unit_embedding.num_embeddings == started.units.vocabulary.is_unit.sum()
    drawn = new_rows(pieces, 20_000)
    torch.testing.assert_close(drawn.mean(0), pieces.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.std(0), pieces.std(0), atol=0.02, rtol=0.02)
    assert not started.units.vocabulary.is_unit[model.written.ids].any()


@pytest.mark.parametrize("beam", [1, 4])
def test_what_is_written_of_speech_and_text_does_not_depend_on_the_batch(started: Started, beam: int) -> None:
    family: Family = started.model
    options = DecodingOptions(beam_size=beam, max_tokens=8)
    manifest = Manifest(started.spoken.corpus)
    samples = [manifest.samples(number) for number in range(4)]
    together = search(family, family.encode(family.features(samples)), [[TARGET]] * 4, options)
    for each, row in zip(samples, together, strict=True):
        alone = search(family, family.encode(family.features([each])), [[TARGET]], options)[0]
        assert row[0].tokens == alone[0].tokens
        assert row[0].log_probability == pytest.approx(alone[0].log_probability, abs=1e-3)
    texts = words(4)
    many = [row[0].text for row in translate_texts(family, texts, ["fr"], source="de", options=options)]
    for text, result in zip(texts, many, strict=True):
        alone_text = next(translate_texts(family, [text], ["fr"], source="de", options=options))
        assert alone_text[0].text == result


def test_a_given_source_language_counts_and_one_that_is_not_is_found(started: Started) -> None:
    model = started.model
    features = model.text_features(["fade"])
    result = model.encode(features)
    assert result.language_log_probs is not None
    assert result.source_language is not None
    likeliest = int(result.language_log_probs.argmax())
    assert result.source_language.tolist() == [likeliest]
    for index in range(2):
        given = model.encode(replace(features, source_language=torch.tensor([index])))
        assert torch.allclose(given.states, result.states) == (index == likeliest)


def test_all_weights_learn_and_the_kind_of_data_is_not_asked(started: Started) -> None:
    model = start_from_mbart(started.units, started.checkpoint, shaped).train()
    reader = model.reader
    assert isinstance(reader, UnitReader)
    supply = TokenDataset(started.parts, model.config, reader, Mixing(), sample=False)
    result = {batch.kind: batch for batch in batches(supply, PLAN, 0)}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    totals = []
    for _ in range(25):
        loss = model.loss(result["speech"])
        optimizer.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        totals.append(float(loss.total.detach()))
    model.eval()
    assert totals[-1] < 0.8 * totals[0]
    assert all(not torch.equal(before[n], v) for n, v in model.state_dict().items() if n.endswith("weight"))
    assert torch.equal(
        model.loss(result["text"]).total, model.loss(replace(result["text"], kind="bitext")).total
    )


def test_a_saved_model_is_the_same(started: Started, tmp_path: Path) -> None:
    save(started.model, tmp_path / "m")
    again = load(tmp_path / "m")
    assert isinstance(again, TokenMbart)
    assert again.config == started.model.config
    for name, value in started.model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    mine, theirs = (
        next(translate_texts(model, ["fade"], ["fr"], source="de"))[0] for model in (started.model, again)
    )
    assert mine.text == theirs.text
    assert mine.log_probability == pytest.approx(theirs.log_probability, abs=1e-5)


def test_what_does_not_fit_is_named(started: Started, tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match="mBART-50 does not know sq; it knows af, ar"):
        units_with_mbart(started.spoken.units, started.checkpoint, started.parts, ["sq"], tmp_path / "a")
    with pytest.raises(SprachbundError, match="holds pieces of other texts or another checkpoint"):
        units_with_mbart(
            started.spoken.units, started.checkpoint, started.parts, ["de", "fr"], started.units.directory
        )
    (tmp_path / "none").mkdir()
    with pytest.raises(SprachbundError, match=r"sentencepiece.bpe.model is missing; name an mBART-50"):
        start_from_mbart(started.units, tmp_path / "none", shaped)
    shutil.copytree(started.checkpoint, tmp_path / "other")
    config = (tmp_path / "other" / "config.json").read_text()
    (tmp_path / "other" / "config.json").write_text(config.replace('"vocab_size": 144', '"vocab_size": 150'))
    with pytest.raises(
        SprachbundError, match="has 150 tokens, and mBART-50 with these 90 pieces would have 144"
    ):
        start_from_mbart(started.units, tmp_path / "other", shaped)
    with pytest.raises(SprachbundError, match="a source has 70 tokens and mBART reads 63"):
        started.model.encode(started.model.tokens_read([[3] * 69]))


def test_the_published_shape_has_the_published_size() -> None:
    """610,879,488 parameters of transformers' model, less the biases on keys."""
    from transformers import MBartConfig

    config = MBartConfig(
        vocab_size=MBART_50_TOKENS,
        scale_embedding=True,
        activation_function="relu",
        max_position_embeddings=1024,
    )
    with torch.device("meta"):
        theirs = sum(p.numel() for p in MBartForConditionalGeneration(config).parameters())
        parts = (MbartEncoder(MBART_50), MbartDecoder(MBART_50_TOKENS, MBART_50))
    ours = sum(p.numel() for part in parts for p in part.parameters())
    unread = 2 * 2 * 1024  # rows of positions
    key_biases = (12 + 2 * 12) * 1024
    assert ours == theirs - unread - key_biases
