import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprachbund.text.normalize import lower, normalize, spaced_characters

WORDS = {
    "hi": "हिन्दी में कितने शब्द हैं",
    "ta": "தமிழ் எழுத்துக்கள்",
    "bn": "বাংলা ভাষা",
    "ml": "മലയാളം ന്‍",  # with a zero-width joiner
    "th": "ภาษาไทย",
    "ar": "اللُّغَة العَرَبِيَّة",
    "he": "שָׁלוֹם עולם",
    "fa": "می‌خواهم",  # with a zero-width non-joiner
    "km": "ភាសាខ្មែរ",
    "my": "မြန်မာဘာသာ",
    "ka": "ქართული ენა",
    "zh": "这是中文",
    "ko": "한국어",
    "am": "አማርኛ ቋንቋ",
}


@pytest.mark.parametrize("language", sorted(WORDS))
def test_scripts_without_case_come_out_as_they_went_in(language):
    assert normalize(WORDS[language], language) == unicodedata.normalize("NFC", WORDS[language])


@given(st.text(alphabet=st.characters(categories=["Lo", "Mn", "Mc", "Nd", "Sc"])))
def test_no_letter_mark_digit_or_currency_sign_is_lost(text):
    composed = unicodedata.normalize("NFC", text)
    assert sorted(normalize(text).replace(" ", "")) == sorted(composed)


@given(st.text())
def test_normalizing_twice_changes_nothing(text):
    once = normalize(text)
    assert normalize(once) == once


def test_punctuation_goes_but_not_within_words_and_numbers():
    assert normalize("«L’heure», dit-il!") == "l'heure dit il"
    assert normalize("It costs 3.50, or 1,000 at 12:30.") == "it costs 3.50 or 1,000 at 12:30"
    assert normalize("col·legi") == "col·legi"
    assert normalize("'quoted'") == "quoted"
    assert normalize("50% €5 ¿qué?") == "50% €5 qué"
    assert normalize("soft\u00adhyphen \ufeffmark") == "softhyphen mark"


def test_emoji_leave_no_invisible_word():
    assert normalize("I ❤️ you 👩\u200d💻!") == "i you"
    assert normalize("☎️\u200d") == ""
    assert normalize("می\u200cخواهم ❤️\u200c") == "می\u200cخواهم"


def test_danda_goes_and_vowel_signs_stay():
    assert normalize("यह हिन्दी है।") == "यह हिन्दी है"


def test_case_follows_the_language():
    assert lower("DIYARBAKIR İstanbul", "tr") == "dıyarbakır istanbul"
    assert lower("I İ", "az-Latn") == "ı i"
    assert lower("TITLE", "en") == "title"
    assert lower("ΟΔΟΣ") == "οδος"  # the final sigma
    assert lower("Straße") == "straße"
    assert lower("i\u0307I\u0307", "tr") == "i\u0307i"  # a decomposed dotted capital is one too


def test_composed_and_decomposed_are_the_same():
    assert normalize("cafe\u0301") == normalize("café") == "café"


def test_characters_keep_their_marks():
    assert spaced_characters("คน ดี") == "ค น ดี"
    assert spaced_characters("中文") == "中 文"
