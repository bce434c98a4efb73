from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from transformers import WhisperTokenizer

from sprachbund.errors import SprachbundError
from sprachbund.models.base import Memory, Target
from sprachbund.models.whisper import CheckpointFiles, Whisper, WhisperTokens
from sprachbund.text.languages import tag_of
from tests.models.whisper_support import LANGUAGES, TINY, make_tokenizer, special_names, with_tokens


@pytest.fixture(scope="module")
def model() -> Whisper:
    return with_tokens()


@pytest.mark.parametrize(
    ("language", "task", "target"),
    [
        ("german", "transcribe", Target(language="de", source="de")),
        ("spanish", "translate", Target(language="en", source="es")),
        ("english", "transcribe", Target(language="en", source="en")),
    ],
)
def test_prompt_is_that_of_transformers(
    model: Whisper, tmp_path: Path, language: str, task: str, target: Target
) -> None:
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "WhisperTokenizer"}')
    reference = WhisperTokenizer.from_pretrained(tmp_path, language=language, task=task)
    assert model.prompt(target) == reference.prefix_tokens


def test_prompt_with_context_and_timestamps(model: Whisper) -> None:
    tokens = model.tokens
    prompt = model.prompt(Target(language="en", source="fr", context=" Ada Lovelace ", timestamps=True))
    start = prompt.index(tokens.start)
    assert prompt[0] == tokens.previous
    assert tokens.tokens_to_text(prompt[1:start]) == " Ada Lovelace"
    assert prompt[start:] == [tokens.start, tokens.languages["fr"], tokens.translate]


def test_long_context_keeps_its_end_within_half_the_row(model: Whisper) -> None:
    prompt = model.prompt(Target(language="de", source="de", context="x" * 500 + "end"))
    assert len(prompt) == model.max_tokens // 2 + 4
    assert model.decode_text(prompt).endswith("xend")


def test_context_cannot_smuggle_in_special_tokens(model: Whisper) -> None:
    with pytest.raises(SprachbundError, match=r"<\|translate\|>"):
        model.prompt(Target(language="de", source="de", context="a <|translate|> b"))


def test_withdrawn_language_codes_are_bcp47_outside(model: Whisper) -> None:
    assert model.source_languages == ("en", "zh", "de", "es", "ru", "fr", "it", "he", "jv", "yue")
    assert model.tokens.languages["he"] == 258 + LANGUAGES.index("iw")


def test_tagalog_has_the_tag_that_corpora_give_it() -> None:
    """Also in lists of pairs of earlier versions, which have Whisper's code."""
    names = special_names((*LANGUAGES, "tl"))
    for config in ({}, {"sprachbund": {"pairs": [["tl", "en"], ["tl", "tl"]]}}):
        model = with_tokens(names=names, config=config)
        assert tag_of("tl", "") in model.source_languages
        assert ("fil", "en") in model.pairs()
        assert model.tokens.languages["fil"] == 256 + names.index("<|tl|>")


def test_pairs_of_a_multilingual_checkpoint(model: Whisper) -> None:
    assert model.pairs() == {(x, y) for x in model.source_languages for y in (x, "en")}


def test_distilled_checkpoints_do_not_translate() -> None:
    turbo = with_tokens(replace(TINY, decoder_layers=1))
    assert turbo.pairs() == {(x, x) for x in turbo.source_languages}
    with pytest.raises(SprachbundError, match="from de it knows de"):
        turbo.prompt(Target(language="en", source="de"))


def test_english_only_checkpoint_has_neither_language_nor_task_in_its_prompt() -> None:
    model = with_tokens(generation={})  # a vocabulary below that of the multilingual checkpoints
    assert model.pairs() == {("en", "en")}
    assert model.source_languages == ("en",)
    assert model.prompt(Target(language="en")) == [model.tokens.start, model.tokens.no_timestamps]
    with pytest.raises(SprachbundError, match="does not write 'de'; it writes en"):
        model.prompt(Target(language="de"))


def test_unknown_pairs_are_refused_with_what_is_known(model: Whisper) -> None:
    with pytest.raises(SprachbundError, match="from fr it knows en, fr"):
        model.prompt(Target(language="de", source="fr"))
    with pytest.raises(SprachbundError, match="does not write 'xx'; it writes de, en, es"):
        model.prompt(Target(language="xx", source="fr"))
    with pytest.raises(SprachbundError, match="needs the language spoken"):
        model.prompt(Target(language="en"))


def test_checkpoint_prompted_with_the_language_wanted() -> None:
    ours = {"target_language_prompt": True, "pairs": [["en", "de"], ["fr", "de"], ["de", "fr"]]}
    model = with_tokens(config={"sprachbund": ours})
    tokens = model.tokens
    tail = [tokens.transcribe, tokens.no_timestamps]
    assert model.pairs() == {("en", "de"), ("fr", "de"), ("de", "fr")}
    assert model.source_languages == ("en", "de", "fr")
    assert model.prompt(Target(language="de", source="en")) == [tokens.start, tokens.languages["de"], *tail]
    assert model.prompt(Target(language="fr")) == [tokens.start, tokens.languages["fr"], *tail]
    with pytest.raises(SprachbundError, match="en to fr"):
        model.prompt(Target(language="fr", source="en"))
    log_probs = model.language_log_probs(Memory(states=torch.zeros(2, 3, 4), num_frames=None))
    assert torch.allclose(log_probs.exp(), torch.full((2, 3), 1 / 3))


@pytest.mark.parametrize(
    "ours", [{"target_language_prompt": True}, {"pairs": [["en", "xx"]]}, {"pairs": 3}, {"pairs": []}, []]
)
def test_malformed_pairs_are_an_error(ours: object) -> None:
    with pytest.raises(SprachbundError, match="pairs"):
        with_tokens(config={"sprachbund": ours})


def test_no_speech_is_read_off_the_logits(model: Whisper) -> None:
    logits = torch.zeros(2, TINY.vocabulary_size)
    logits[1, model.tokens.no_speech] = 50.0
    log_prob = model.no_speech_log_prob(logits)
    assert log_prob is not None
    assert torch.allclose(log_prob, torch.tensor([-np.log(2000.0), 0.0], dtype=torch.float32))
    older = with_tokens(names=[n.replace("nospeech", "nocaptions") for n in special_names()])
    assert older.tokens.no_speech == model.tokens.no_speech


def test_suppressed_tokens() -> None:
    generation = {"is_multilingual": True, "suppress_tokens": [5, 7, -1], "begin_suppress_tokens": [32, 256]}
    model = with_tokens(generation=generation)
    model.to_empty(device="cpu")
    plain = model.suppressed(Target(language="de"))
    stamped = model.suppressed(Target(language="de", timestamps=True))
    specials = set(range(257, 257 + len(special_names()) - 1))
    assert set(plain.nonzero()[:, 0].tolist()) == {5, 7} | specials
    assert set(stamped.nonzero()[:, 0].tolist()) == {5, 7} | (specials - set(model.tokens.timestamps))
    assert model.capabilities.begin_suppressed == (32, 256)


def test_timestamps_left_out_of_the_tokenizer_file_follow_no_timestamps() -> None:
    named = [n for n in special_names() if not n.startswith("<|0") and "." not in n]
    config = replace(TINY, vocabulary_size=256 + len(special_names()))
    model = with_tokens(config, names=named)
    assert model.tokens.no_timestamps is not None
    assert model.tokens.timestamps == range(model.tokens.no_timestamps + 1, config.vocabulary_size)
    assert len(model.tokens.timestamps) == 1501


def test_added_text_behind_the_timestamps_is_none_of_them() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("Bund", normalized=False)])
    tokens = WhisperTokens(tokenizer, TINY.vocabulary_size)
    (added,) = tokens.text_to_tokens("Bund")
    assert tokens.behind_timestamps == tokens.timestamps.stop == added
    assert tokens.tokens_to_text([tokens.timestamps[7], added]) == "Bund"
    with torch.device("meta"):
        model = Whisper(TINY, tokens=tokens, checkpoint_files=CheckpointFiles())
    times = model.capabilities.timestamps
    assert times is not None
    assert (times.first, times.stop) == (tokens.timestamps[0], added)


def test_text_leaves_special_tokens_and_timestamps_out(model: Whisper) -> None:
    text = model.tokens.text_to_tokens(" naïve über 語")
    mixed = [model.tokens.start, *text, model.tokens.timestamps[10], model.end_token]
    assert model.decode_text(mixed) == " naïve über 語"


def test_alignment_heads_from_the_checkpoint_or_the_upper_half() -> None:
    assert with_tokens().alignment_heads == [(1, head) for head in range(4)]
    listed = {"is_multilingual": True, "alignment_heads": [[0, 3], [1, 2]]}
    assert with_tokens(generation=listed).alignment_heads == [(0, 3), (1, 2)]
    of_the_teacher = {"is_multilingual": True, "alignment_heads": [[1, 2], [7, 0], [25, 6]]}
    assert with_tokens(generation=of_the_teacher).alignment_heads == [(1, 2)]
    none_left = {"is_multilingual": True, "alignment_heads": [[7, 0], [25, 6]]}
    assert with_tokens(generation=none_left).alignment_heads == [(1, head) for head in range(4)]


def test_a_tokenizer_that_is_not_whispers_is_refused() -> None:
    with pytest.raises(SprachbundError, match=r"no token <\|startoftranscript\|>"):
        WhisperTokens(make_tokenizer(["<|endoftext|>"]), 2000)
    with pytest.raises(SprachbundError, match="belongs to another checkpoint"):
        WhisperTokens(make_tokenizer(), 300)


def test_without_tokens_the_error_says_so() -> None:
    with pytest.raises(SprachbundError, match="without a tokenizer"):
        Whisper.shape(TINY).prompt(Target(language="en"))
