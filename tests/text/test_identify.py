import pytest

from sprachbund.errors import SprachbundError
from sprachbund.text.identify import LanguageIdentifier, ngrams

TEXTS = {
    "en": ["the cat sat on the mat", "where is the station", "this and that"],
    "de": ["die Katze saß auf der Matte", "wo ist der Bahnhof", "dies und das"],
    "ru": ["кошка сидела на коврике", "где вокзал", "это и то"],
}


@pytest.fixture(scope="module")
def identifier():
    return LanguageIdentifier.train(TEXTS)


def test_unseen_texts(identifier):
    assert identifier.identify("the other cat").language == "en"
    assert identifier.identify("der andere und die").language == "de"
    assert identifier.identify("на вокзале").language == "ru"


def test_probabilities_sum_to_one_and_name_the_best(identifier):
    found = identifier.identify("the station", ["en", "de"])
    assert set(found.probabilities) == {"en", "de"}
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert found.probability == max(found.probabilities.values())


def test_nothing_to_tell_by_is_told_by_an_even_posterior(identifier):
    for text in ("", "42", "?!"):
        assert identifier.identify(text).probability == pytest.approx(1 / 3)


def test_only_allowed_languages_come_out(identifier):
    assert identifier.identify("the cat", ["de", "ru"]).language == "de"


def test_ngrams_have_word_borders_and_no_digits():
    assert set(ngrams("Ab 7")) == {"a", "b", " a", "ab", "b ", " ab", "ab ", " ab "}


def test_errors_name_the_language(identifier):
    with pytest.raises(SprachbundError, match="no texts of xx"):
        identifier.identify("the", ["en", "xx"])
    with pytest.raises(SprachbundError, match="two languages"):
        LanguageIdentifier.train({"en": ["the"]})
    with pytest.raises(SprachbundError, match="empty: \\['de'\\]"):
        LanguageIdentifier.train({"en": ["the"], "de": ["", "12"]})
