"""Tokenizer: texts of every script survive, language tokens are single, special tokens vanish."""

import pytest

from sprachbund.errors import SprachbundError
from sprachbund.text.tokenizer import BLANK, END, UNKNOWN, Tokenizer

TEXTS = {
    "en": ["the train to Munich leaves at half past five", "you have three new messages"] * 20,
    "de": ["der Zug nach München fährt um halb sechs", "Sie haben drei neue Nachrichten"] * 20,
    "ru": ["поезд в Мюнхен отправляется в половине шестого", "у вас три новых сообщения"] * 20,
}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([t for texts in TEXTS.values() for t in texts], tuple(TEXTS), 120)


def test_texts_survive(tokenizer):
    for texts in TEXTS.values():
        for text in texts:
            tokens = tokenizer.encode(text)
            assert UNKNOWN not in tokens
            assert tokenizer.decode(tokens) == text


def test_what_has_no_piece_is_named(tokenizer):
    assert tokenizer.unknown("drei neue") == []
    result = tokenizer.unknown("drei ŋ neue ħ")
    assert "".join(result).replace("\u2581", "") == "ŋħ"


def test_special_tokens_vanish(tokenizer):
    tokens = tokenizer.encode("drei neue")
    assert tokenizer.decode([tokenizer.language_id("de"), *tokens, END, BLANK]) == "drei neue"
    assert len({tokenizer.language_id(tag) for tag in TEXTS}) == 3


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.model")
    again = Tokenizer.load(tmp_path / "tokenizer.model", tuple(TEXTS))
    assert again.encode("neue Nachrichten") == tokenizer.encode("neue Nachrichten")
    assert len(again) == len(tokenizer)


def test_a_language_without_a_token_is_an_error(tokenizer):
    with pytest.raises(SprachbundError, match="fi"):
        Tokenizer(tokenizer.model, ["en", "fi"])


def test_a_vocabulary_with_a_full_stop_is_not_of_words_only(tokenizer):
    assert tokenizer.words_only
    punctuated = [f"{text}." for texts in TEXTS.values() for text in texts]
    assert not Tokenizer.train(punctuated, tuple(TEXTS), 120).words_only
