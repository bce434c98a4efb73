import pytest

from sprachbund.errors import SprachbundError
from sprachbund.text.languages import (
    described,
    join_units,
    language_name,
    parse_language,
    tag_of,
    text_units,
    writes_spaces,
)

KNOWN = ("de", "en", "es", "fr", "it", "ru", "pt", "nl", "zh", "no")


@pytest.mark.parametrize(
    ("typed", "tag"),
    [
        ("de", "de"),
        ("DE", "de"),
        (" de ", "de"),
        ("deu", "de"),
        ("ger", "de"),
        ("de-DE", "de"),
        ("de_AT", "de"),
        ("German", "de"),
        ("german", "de"),
        ("Deutsch", "de"),
        ("russisch", "ru"),
        ("Русский", "ru"),
        ("pt-BR", "pt"),
        ("cmn", "zh"),
        ("nb", "no"),
        ("zh-Hant-TW", "zh"),
    ],
)
def test_what_people_type_is_understood(typed, tag):
    assert parse_language(typed, KNOWN) == tag


def test_a_tag_with_a_region_is_found_from_the_bare_language():
    assert parse_language("pt", ("pt-BR", "en")) == "pt-BR"
    with pytest.raises(SprachbundError, match=r"language 'pt' is not among .* it knows pt-BR .*, pt-PT"):
        parse_language("pt", ("pt-BR", "pt-PT"))


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("germn", "de"),
        ("deutch", "de"),
        ("englsh", "en"),
        ("Frenhc", "fr"),
        ("ita1", "it"),
    ],
)
def test_an_unknown_language_is_refused_with_the_nearest_and_the_list(typed, nearest):
    with pytest.raises(SprachbundError) as caught:
        parse_language(typed, KNOWN)
    message = str(caught.value)
    assert f"nearest: {nearest}" in message
    assert repr(typed) in message
    assert "de (German), en (English)" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "typed", ["Spanisch Deutsch", "xx", "jp", "klingon", "", "sv", "Swedish", "frr", "dee"]
)
def test_an_unknown_language_has_no_nearest_where_none_is_alike_or_it_is_another_one(typed):
    with pytest.raises(SprachbundError) as caught:
        parse_language(typed, KNOWN)
    assert str(caught.value).startswith(f"language {typed!r} is not among those of this model; it knows ")


def test_mixed_speech_has_a_tag_and_a_name():
    for typed in ("mul", "mixed", "Mixed", "multiple languages"):
        assert parse_language(typed, (*KNOWN, "mul")) == "mul"
        with pytest.raises(SprachbundError):
            parse_language(typed, KNOWN)


def test_a_language_the_model_lacks_is_never_replaced():
    for typed in ("sv", "Swedish", "gsw", "uk", "yue"):
        with pytest.raises(SprachbundError, match=f"language '{typed}' is not among those of this model"):
            parse_language(typed, KNOWN)


def test_names():
    assert language_name("de") == "German"
    assert language_name("mul") == "mixed, as spoken"
    assert described(["fr", "de"]) == "de (German), fr (French)"
    assert described([]) == "none"


def test_units_are_words_or_characters():
    assert text_units(" guten  Tag ", "de-CH") == ["guten", "Tag"]
    assert text_units("你好 吗", "zh-Hant") == ["你", "好", "吗"]
    assert text_units("ni hao", "zh-Latn-CN") == ["ni", "hao"]
    assert text_units("你好", "cmn") == ["你", "好"]
    spaced = ("zh-Hant", "cmn-Hans-CN", "nan-TW", "wuu", "ko", "ja-Latn", "nan-Latn-TW")
    assert [tag for tag in spaced if writes_spaces(tag)] == ["ko", "ja-Latn", "nan-Latn-TW"]
    assert join_units(["guten", "Tag"], "de") == "guten Tag"
    assert join_units(["你", "好"], "zh") == "你好"


@pytest.mark.parametrize(
    ("typed", "tag"),
    [("Quechua", "qu"), ("deutsch", "de"), ("Swiss German", "gsw"), ("PT-br", "pt-BR"), ("mixed", "mul")],
)
def test_any_language_is_named_by_its_tag_or_its_name(typed, tag):
    assert tag_of(typed, "--language") == tag


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("klingonish", "^--language 'klingonish' is not a language; write tlh if you mean Klingon$"),
        ("", "^--language '' is not a language; write it like en, de or pt-BR$"),
    ],
)
def test_what_is_only_like_a_name_is_not_taken_for_it(typed, message):
    with pytest.raises(SprachbundError, match=message):
        tag_of(typed, "--language")
