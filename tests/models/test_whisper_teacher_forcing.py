"""What Whisper is taught: the loss of transformers, the features of decoding, prompts by language, new languages."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration, WhisperTokenizer

from sprachbund.data.batch import Batch
from sprachbund.data.loading import Example, collate
from sprachbund.errors import SprachbundError
from sprachbund.models import whisper
from sprachbund.models.base import Target
from sprachbund.models.whisper import Whisper
from sprachbund.models.whisper.extension import add_languages, set_prompt, set_real_length
from sprachbund.models.whisper.model import WhisperExamples
from tests.models.whisper_support import TINY, make_directory, make_tokenizer, special_names

SOUNDS = [0.1 * np.random.default_rng(n).standard_normal(n).astype(np.float32) for n in (9_000, 24_000)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teaching") / "whisper"
    make_directory(path, generation={"lang_to_id": {"<|en|>": 258}})
    return path


def make_batch(model: Whisper, asked: list[list[tuple[str, str]]]) -> Batch:
    """An utterance for each list of (target language, text), all of them spoken in German; no target is silence."""
    examples = WhisperExamples(model, sorted({"de", "en"} | {t for rows in asked for t, _ in rows}))
    made = []
    for sound, rows in zip(SOUNDS, asked, strict=True):
        features, num_frames = examples.features(sound, lambda x: x)
        spoken = [examples.row(text, "de", target) for target, text in rows]
        silent = [] if rows else [examples.row("", None, "de")]
        made.append(
            Example(
                features=features,
                source_language=examples.number("de") if rows else -1,
                rows=[row for row in (*spoken, *silent) if row is not None],
                num_frames=num_frames,
            )
        )
    return collate(made, 2)


ASKED = [[("de", "guten Tag"), ("en", "good day")], [("en", "one two three four")]]


def test_the_loss_is_that_of_transformers(checkpoint: Path) -> None:
    theirs = WhisperForConditionalGeneration.from_pretrained(checkpoint).eval()
    model = whisper.load(checkpoint)
    loss = model.loss(make_batch(model, ASKED))
    given, labels, sounds = [], [], []
    for sound, rows in zip(SOUNDS, ASKED, strict=True):
        for target, text in rows:
            prompt = model.prompt(Target(language=target, source="de"))
            said = [*model.tokens.text_to_tokens(" " + text), model.end_token]
            given.append(torch.tensor([*prompt, *said[:-1]]))
            labels.append(torch.tensor([-100] * (len(prompt) - 1) + said))
            sounds.append(sound)
    pad = torch.nn.utils.rnn.pad_sequence
    expected = theirs(
        input_features=model.features(sounds).values.transpose(1, 2),
        decoder_input_ids=pad(given, batch_first=True),
        labels=pad(labels, batch_first=True, padding_value=-100),
    ).loss
    assert loss.num_tokens == sum(int((row != -100).sum()) for row in labels)
    torch.testing.assert_close(loss.total / loss.num_tokens, expected, rtol=1e-5, atol=1e-5)
    name = "decoder.layers.0.cross_attention.value.weight"
    (ours,) = torch.autograd.grad(loss.total / loss.num_tokens, [dict(model.named_parameters())[name]])
    (wanted,) = torch.autograd.grad(expected, [theirs.model.decoder.layers[0].encoder_attn.v_proj.weight])
    torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-5)


def test_smoothing_is_added_as_the_paper_says(checkpoint: Path) -> None:
    """(1 - e) H(q, p) + e H(u, p), arXiv 1512.00567, section 7."""
    model = whisper.load(checkpoint)
    batch = make_batch(model, [[("en", "a")], [("en", "b")]])
    plain = model.loss(batch).total.item()
    model.label_smoothing = 0.2
    smoothed = model.loss(batch).total.item()
    tokens = [model.tokens.text_to_tokens(" a"), model.tokens.text_to_tokens(" b")]
    prompt = model.prompt(Target(language="en", source="de"))
    even = 0.0
    for sound, said in zip(SOUNDS, tokens, strict=True):
        logits = model(model.features([sound]), torch.tensor([[*prompt, *said]]))[0, len(prompt) - 1 :]
        even -= float(logits.log_softmax(-1).mean(-1).sum())
    torch.testing.assert_close(smoothed, 0.8 * plain + 0.2 * even, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("real_length", [False, True])
def test_features_are_those_of_decoding(checkpoint: Path, real_length: bool) -> None:
    model = whisper.load(checkpoint, real_length=real_length)
    batch = make_batch(model, [[("de", "eins")], [("de", "zwei")]])
    given = model.features(SOUNDS)
    assert batch.num_frames.tolist() == given.num_frames.tolist()
    torch.testing.assert_close(batch.features[:, : given.values.shape[1]], given.values, atol=0, rtol=0)
    row = torch.tensor([[*model.prompt(Target(language="de", source="de")), 70, 71]]).expand(2, -1)
    logits = model(given, row)[:, 3:5].log_softmax(-1)
    targets = torch.tensor([[70, 71], [70, 71], [70, 71], [70, 71]])
    two = replace(batch, targets=targets, num_targets=torch.tensor([2, 0, 2, 0]))
    expected = -logits[:, [0, 1], [70, 71]].sum()
    torch.testing.assert_close(model.loss(two).total, expected, rtol=1e-5, atol=1e-4)


def test_only_the_utterance_is_masked_and_the_silence_after_it_stays(checkpoint: Path) -> None:
    model = whisper.load(checkpoint)
    examples = WhisperExamples(model, ["de"])
    plain, own = examples.features(SOUNDS[0], lambda x: x)
    masked, _ = examples.features(SOUNDS[0], torch.zeros_like)
    assert own == 9_000 // 160
    assert not masked[:own].any()
    assert torch.equal(masked[own:], plain[own:])


def test_silence_is_taught_at_the_place_where_it_is_read_off(checkpoint: Path) -> None:
    model = whisper.load(checkpoint)
    batch = make_batch(model, [[], []])
    no_speech = model.tokens.no_speech
    assert no_speech is not None
    features = model.features(SOUNDS)
    logits = model(features, torch.tensor([[model.tokens.start, no_speech]] * 2))
    expected = -logits.log_softmax(-1)[:, [0, 1], [no_speech, model.end_token]].sum()
    torch.testing.assert_close(model.loss(batch).total, expected, rtol=1e-5, atol=1e-4)
    read = model.no_speech_log_prob(logits[:, 0])
    assert read is not None
    torch.testing.assert_close(-read.sum(), -logits[:, 0].log_softmax(-1)[:, no_speech].sum())


def test_rows_are_those_that_the_prompt_can_ask_for(checkpoint: Path) -> None:
    model = whisper.load(checkpoint)
    languages = ["de", "en", "fr"]
    examples = WhisperExamples(model, languages)
    assert [t for t in languages if examples.row("x", "de", t)] == ["de", "en"]
    wanted = set_prompt(model, "wanted", languages)
    examples = WhisperExamples(wanted, languages)
    assert all(examples.row("x", "de", t) for t in languages)
    row = wanted.prompt(Target(language="fr", source="de"))
    assert row[1] == wanted.tokens.languages["fr"]
    back = set_prompt(wanted, "spoken", languages)
    assert back.prompt(Target(language="en", source="de"))[1] == back.tokens.languages["de"]


@pytest.mark.parametrize("named", [True, False], ids=["timestamps in the file", "older file"])
def test_a_new_language_loads_in_transformers(tmp_path: Path, named: bool) -> None:
    names = special_names() if named else special_names(last_timestamp=-1)
    config = replace(TINY, vocabulary_size=1775) if not named else TINY
    make_directory(tmp_path / "old", config, names=names, generation={"lang_to_id": {"<|en|>": 258}})
    tokenizer = make_tokenizer(names)
    WhisperTokenizer(tokenizer_object=tokenizer).save_pretrained(tmp_path / "files")
    described = (tmp_path / "files" / "tokenizer_config.json").read_bytes()
    (tmp_path / "old" / "tokenizer_config.json").write_bytes(described)
    old = whisper.load(tmp_path / "old")
    model = add_languages(old, {"gsw": "de", "nds": "mean"})
    whisper.save(model, tmp_path / "new")
    again, theirs = (
        whisper.load(tmp_path / "new"),
        WhisperForConditionalGeneration.from_pretrained(tmp_path / "new"),
    )
    assert again.tokens.timestamps == old.tokens.timestamps
    assert list(again.tokens.languages) == [*old.tokens.languages, "gsw", "nds"]
    their_tokenizer = WhisperTokenizer.from_pretrained(tmp_path / "new")
    for tag in ("gsw", "nds"):
        assert their_tokenizer.convert_tokens_to_ids(f"<|{tag}|>") == again.tokens.languages[tag]
        assert theirs.generation_config.lang_to_id[f"<|{tag}|>"] == again.tokens.languages[tag]
    embedding = theirs.get_input_embeddings().weight
    rows = old.decoder.embedding.weight[list(old.tokens.languages.values())]
    assert torch.equal(embedding[again.tokens.languages["gsw"]], rows[list(old.tokens.languages).index("de")])
    torch.testing.assert_close(embedding[again.tokens.languages["nds"]], rows.mean(0))
    with torch.no_grad():
        features = old.features(SOUNDS)
        row = torch.tensor([[257, 260, 70, 71]] * 2)
        before, after = old(features, row), again(features, row)
    known = slice(1775)  # rows after it are spare, or new
    # A product with a matrix of more rows may be summed in another order.
    torch.testing.assert_close(after[..., known], before[..., known], atol=1e-5, rtol=1e-5)
    assert again.prompt(Target(language="en", source="gsw"))[1] == again.tokens.languages["gsw"]


def test_listed_pairs_are_extended(tmp_path: Path) -> None:
    pairs = [["de", "en"], ["en", "de"]]
    extra = {"sprachbund": {"target_language_prompt": True, "pairs": pairs}}
    make_directory(tmp_path, extra_config=extra)
    model = add_languages(whisper.load(tmp_path), {"gsw": "de"})
    new = {("gsw", t) for t in ("de", "en", "gsw")} | {(s, "gsw") for s in ("de", "en")}
    assert model.pairs() == {("de", "en"), ("en", "de")} | new


def test_real_length_is_remembered(checkpoint: Path, tmp_path: Path) -> None:
    whisper.save(set_real_length(whisper.load(checkpoint), True), tmp_path / "new")
    assert whisper.load(tmp_path / "new").real_length
    assert not whisper.load(tmp_path / "new", real_length=False).real_length
    assert json.loads((tmp_path / "new" / "config.json").read_text())["sprachbund"] == {"real_length": True}


def test_languages_without_a_token_are_named(checkpoint: Path) -> None:
    with pytest.raises(SprachbundError, match="no token for gsw"):
        WhisperExamples(whisper.load(checkpoint), ["de", "gsw"])
