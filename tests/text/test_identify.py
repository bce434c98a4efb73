"""Languages of texts: plain sentences are identified, and what may be of any language is unknown."""

import pytest

from sprachbund.errors import SprachbundError
from sprachbund.text.identify import LEAST_PROBABILITY, UNKNOWN, LanguageIdentifier

SENTENCES = {
    "ar": ["القطار إلى الساحل يغادر غدا صباحا في الساعة التاسعة.", "أضاعت أختي مفاتيحها مرة أخرى."],
    "ca": ["El tren cap a la costa surt demà al matí a les nou.", "Podries obrir la finestra, si us plau?"],
    "cs": ["Vlak k moři odjíždí zítra ráno v devět.", "Celý týden pršelo."],
    "da": ["Toget til kysten kører i morgen tidlig klokken ni.", "Vil du ikke nok åbne vinduet?"],
    "de": ["Der Zug an die Küste fährt morgen früh um neun ab.", "Es hat die ganze Woche geregnet."],
    "en": ["The train to the coast leaves at nine tomorrow morning.", "It rained the whole week."],
    "es": ["El tren a la costa sale mañana a las nueve.", "Ha llovido toda la semana."],
    "fr": ["Le train pour la côte part demain matin à neuf heures.", "Ma sœur a encore perdu ses clés."],
    "hi": ["समुद्र तट की ट्रेन कल सुबह नौ बजे निकलती है।", "पूरे हफ्ते बारिश होती रही।"],
    "hu": ["A vonat a tengerpartra holnap reggel kilenckor indul.", "Egész héten esett az eső."],
    "it": ["Il treno per la costa parte domani mattina alle nove.", "Ha piovuto tutta la settimana."],
    "ja": ["海岸行きの列車は明日の朝九時に出発します。", "妹がまた鍵をなくしました。"],
    "ko": ["해안으로 가는 기차는 내일 아침 아홉 시에 출발합니다.", "일주일 내내 비가 왔어요."],
    "nl": ["De trein naar de kust vertrekt morgenochtend om negen uur.", "Mijn zus is haar sleutels kwijt."],
    "pl": ["Pociąg nad morze odjeżdża jutro rano o dziewiątej.", "Cały tydzień padał deszcz."],
    "pt": ["O comboio para a costa parte amanhã às nove da manhã.", "Choveu a semana inteira."],
    "ro": ["Trenul spre coastă pleacă mâine dimineață la nouă.", "Ai putea să deschizi fereastra, te rog?"],
    "ru": ["Поезд на побережье отправляется завтра утром в девять.", "Моя сестра опять потеряла ключи."],
    "sv": ["Tåget till kusten går i morgon klockan nio.", "Det har regnat hela veckan."],
    "tr": ["Sahile giden tren yarın sabah dokuzda kalkıyor.", "Pencereyi açar mısın lütfen?"],
    "uk": ["Потяг до узбережжя вирушає завтра вранці о дев'ятій.", "Моя сестра знову загубила ключі."],
    "zh": ["去海边的火车明天早上九点出发。", "我妹妹又把钥匙弄丢了。"],
}


@pytest.fixture(scope="module")
def identifier() -> LanguageIdentifier:
    return LanguageIdentifier(SENTENCES)


@pytest.mark.parametrize("language", SENTENCES)
def test_plain_sentences_are_identified(identifier: LanguageIdentifier, language: str) -> None:
    assert [identifier.identify(text).language for text in SENTENCES[language]] == [language] * 2


@pytest.mark.parametrize(
    "text", ["", "42", "?!", "0176 55 12 33", "OK", "WLAN", "Berlin", "Müller", "Anna", "hallo"]
)
def test_what_may_be_of_any_language_is_unknown(identifier: LanguageIdentifier, text: str) -> None:
    result = identifier.identify(text)
    assert result.language == UNKNOWN
    assert result.probability < LEAST_PROBABILITY


def test_numbers_are_unknown_where_one_language_alone_is_allowed(identifier: LanguageIdentifier) -> None:
    assert identifier.identify("42", ["de"]).language == UNKNOWN


def test_probabilities_sum_to_one_and_name_the_best(identifier: LanguageIdentifier) -> None:
    result = identifier.identify("where is the station", ["en", "de"])
    assert set(result.probabilities) == {"en", "de"}
    assert sum(result.probabilities.values()) == pytest.approx(1)
    assert result.language == "en"
    assert result.probability == max(result.probabilities.values())


def test_only_allowed_languages_come_out(identifier: LanguageIdentifier) -> None:
    result = identifier.identify(SENTENCES["uk"][0], ["de", "ru"])
    assert result.language == "ru"


def test_tags_are_those_that_were_asked_for() -> None:
    identifier = LanguageIdentifier(["nb", "zh-Hant", "pt-BR", "pt", "en"])
    assert identifier.identify("Det har regnet hele uken, og det regner fortsatt.").language == "nb"
    assert identifier.identify(SENTENCES["zh"][0]).language == "zh-Hant"
    both = identifier.identify(SENTENCES["pt"][1]).probabilities
    assert both["pt"] == both["pt-BR"] > 0.9
    assert LanguageIdentifier(["en", "de", "tlh"]).languages == ("de", "en")


def test_errors_name_the_language(identifier: LanguageIdentifier) -> None:
    with pytest.raises(SprachbundError, match="xx cannot be identified"):
        identifier.identify("the", ["en", "xx"])
    with pytest.raises(SprachbundError, match="two languages or more, and knows en of en, tlh"):
        LanguageIdentifier(["en", "tlh"])
