"""Numbers in digits: what num2words and the phrasebook spell is read back, and what is no number stays."""

import random
import re

import pytest
from num2words import num2words

from sprachbund.corpora.phrasebook.dates import clock_time, date
from sprachbund.text.digits import LANGUAGES, in_digits
from sprachbund.text.numbers import cardinal, decimal, ordinal, year

NBSP = "\u00a0"
BARE = ("mil", "mille")  # a word alone by which people also say thanks


def written(text: str, language: str) -> str:
    return " ".join(one.text for one in in_digits(text.split(), language))


@pytest.mark.parametrize("language", LANGUAGES)
def test_cardinals_of_num2words_are_read_back(language):
    rng = random.Random(language)
    values = [*range(10, 1300), *(rng.randrange(1300, 1_000_000) for _ in range(700))]
    for value in values:
        words = str(num2words(value, lang=language)).replace(",", "")
        if words not in BARE:
            assert written(words, language) == str(value), words


@pytest.mark.parametrize(
    ("language", "forms"),
    [("es", "m f"), ("fr", "m f"), ("it", "m f"), ("de", "m f n.acc m.dat"), ("ru", "m f n f.acc")],
)
def test_numbers_that_agree_with_a_noun_are_read_back(language, forms):
    for value in range(21, 1000, 10):
        for form in forms.split():
            words = cardinal(value, language, form)
            assert written(words, language) == str(value), words


@pytest.mark.parametrize("language", LANGUAGES)
def test_ordinals_are_read_back(language):
    for value in range(10, 100):
        for form in {"es": "mf", "it": "mf", "de": "mn", "ru": "mfn"}.get(language, "m"):
            words = ordinal(value, language, form)
            assert re.match(rf"{value}\D", written(words, language)), words


def test_ordinals_are_written_as_each_language_does():
    assert [written(t, "en") for t in ("twenty first", "twenty-second", "eleventh")] == [
        "21st",
        "22nd",
        "11th",
    ]
    assert written("двадцать первого", "ru") == "21-го"
    assert written("двадцать первая", "ru") == "21-я"
    assert written("ventunesima", "it") == "21ª"
    assert written("einundzwanzigsten", "de") == "21."


@pytest.mark.parametrize("language", LANGUAGES)
def test_years_are_read_back(language):
    for value in range(1500, 2100):
        words = f"{year(value, language, 'gen')}{' года' if language == 'ru' else ''}"
        assert written(words, language).removesuffix(" года") == str(value) or words in (
            "dos mil",
            "duemila",
        ), words


@pytest.mark.parametrize("language", LANGUAGES)
def test_decimals_are_read_back(language):
    sign = "." if language == "en" else ","
    for whole in range(0, 100, 7):
        for fraction in ("5", "05", "25", "75"):
            assert written(decimal(whole, fraction, language), language) == f"{whole}{sign}{fraction}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_clock_times_of_the_phrasebook_are_read_back(language):
    for hour in range(1, 24):
        for minute in (5, 15, 20, 30, 45, 59):
            for variant in (0, 1):
                words = clock_time(hour, minute, language, "at", variant)
                text = written(words, language)
                result = re.search(rf"(\d+)(?::|{NBSP}h{NBSP})(\d\d)", text)
                if result is None:  # noon and midnight have names
                    assert {"fr": "midi", "it": "mezzo"}.get(language, "-") in text, (words, text)
                    continue
                assert (int(result[1]) % 12, int(result[2])) == (hour % 12, minute), (words, text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_days_of_months_are_written_in_digits(language):
    for day in range(1, 32):
        text = written(date((3, day, 0, -1), language, "on", 1), language)
        assert re.search(rf"(?<!\d){day}(?!\d)", text), text


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "five euros and twenty cents", "€5.20"),
        ("en", "that makes two dollars fifty in total", "that makes $2.50 in total"),
        ("en", "a discount of two point five percent", "a discount of 2.5%"),
        ("de", "das kostet acht Pfund fünfundzwanzig pro Nacht", f"das kostet 8,25{NBSP}£ pro Nacht"),
        ("fr", "dix pour cent de cinq euros", f"10{NBSP}% de 5{NBSP}€"),
        ("es", "veintiún euros con cincuenta céntimos", f"21,50{NBSP}€"),
        ("es", "cuesta diez euros con cincuenta, gracias", f"cuesta 10,50{NBSP}€, gracias"),
        ("es", "diez euros con veinte amigos", f"10{NBSP}€ con 20 amigos"),
        ("it", "dieci euro e cinquanta al chilo", f"10,50{NBSP}€ al chilo"),
        ("it", "dieci euro e cinquanta all'ora", f"10,50{NBSP}€ all'ora"),
        ("it", "dieci euro e venti mele", f"10{NBSP}€ e 20 mele"),
        ("it", "dieci per cento", "10%"),
        ("ru", "двадцать один рубль пятьдесят копеек", f"21,50{NBSP}₽"),
        ("fr", "trois livres sterling cinquante", f"3,50{NBSP}£"),
        ("es", "dos libras esterlinas", f"2{NBSP}£"),
        ("en", "ten pounds sterling", "£10"),
        ("en", "three pounds fifty", "£3.50"),
        ("en", "it costs three pounds, thanks", "it costs £3, thanks"),
        ("en", "that costs seven pounds twelve", "that costs £7.12"),
        ("en", "five pounds and ten pence for the bus", "£5.10 for the bus"),
        ("en", "it cost ten pounds twenty years ago", "it cost £10 20 years ago"),
        ("de", "das kostet siebentausend Pfund", f"das kostet 7000{NBSP}£"),
        ("de", "für ein Bier zahlen Sie ein Pfund neunzig", f"für ein Bier zahlen Sie 1,90{NBSP}£"),
        ("de", "zehn Pfund und fünf Pence", f"10,05{NBSP}£"),
        ("de", "zehn Pfund Sterling", f"10{NBSP}£"),
        ("it", "dieci sterline", f"10{NBSP}£"),
        ("ru", "за салат вы платите три фунта", f"за салат вы платите 3{NBSP}£"),
        ("ru", "десять фунтов стерлингов", f"10{NBSP}£"),
        ("ru", "один фунт семьдесят пять пенсов", f"1,75{NBSP}£"),
        ("en", "two hundred pounds", "200 pounds"),
        ("en", "seven pounds twelve", "seven pounds 12"),
        ("en", "he lost ten pounds twenty years ago", "he lost 10 pounds 20 years ago"),
        ("de", "zehn Pfund Mehl", "10 Pfund Mehl"),
        ("de", "zehn Pfund zwanzig Jahre lang", "10 Pfund 20 Jahre lang"),
        ("ru", "двадцать фунтов муки", "20 фунтов муки"),
        ("es", "veinte mil euros y las décimas", f"20000{NBSP}€ y las 10ª"),
        ("ru", "ноль целых три десятых", "0,3"),
        ("en", "call seven seven three oh nine please", "call 77309 please"),
        ("de", "null eins sieben sechs", "0176"),
        (
            "de",
            "die Nummer ist null eins sieben sechs dreiundzwanzig fünfundvierzig.",
            f"die Nummer ist 0176{NBSP}23{NBSP}45.",
        ),
        ("de", "eins zwei drei zwölf", "eins zwei drei 12"),
        ("en", "my number is oh seven nine double four", "my number is 07944"),
        ("en", "double oh seven", "007"),
        ("en", "oh seven nine", "oh seven nine"),
        ("en", "press double five", "press double five"),
        ("fr", "appelez le zéro six douze trente-quatre.", f"appelez le 06{NBSP}12{NBSP}34."),
        ("fr", "zéro un zéro deux quatre-vingt-dix-neuf", f"01{NBSP}02{NBSP}99"),
        ("fr", "zéro un deux trois", "0123"),
        ("fr", "zéro six cents", "zéro 600"),
        ("en", "twenty-five, thirty.", "25, 30."),
        ("de", "zwischen drei und dreißig Häuser", "zwischen drei und 30 Häuser"),
    ],
)
def test_amounts_strings_of_digits_and_punctuation(language, text, expected):
    assert written(text, language) == expected


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "one of them has a second to spare and the third man waits"),
        ("en", "press one for sales and two for help"),
        ("en", "thousands of thanks and a million more"),
        ("es", "uno de ellos vive en el segundo piso"),
        ("es", "mil gracias"),
        ("fr", "un homme et une femme pour la première fois"),
        ("fr", "mille fois merci"),
        ("it", "sei pronto per un caffè e grazie mille"),
        ("de", "eine Frau hat erste Hilfe geleistet und auf acht gegeben"),
        ("de", "Mittwoch ist der einzige Tag"),
        ("ru", "один человек и тысяча извинений"),
        ("en", "two million three hundred thousand dollars"),
        ("ru", "полка для поллитра"),
        ("en", "one million and fifty people"),
        ("es", "dos millones quinientos mil euros"),
        ("fr", "deux millions trois cents euros"),
        ("it", "mille e duecento euro"),
        ("de", "eine Million zweihunderttausend Euro"),
        ("ru", "два миллиона триста тысяч рублей"),
        ("es", "un millón y cien"),
        ("en", "five pounds of flour"),
        ("de", "fünf Pfund Mehl und ein Pfund Äpfel"),
        ("ru", "пять фунтов муки"),
        ("en", "one tenth of a second and a twentieth of it"),
        ("es", "subió una décima, y un décimo de segundo"),
        ("fr", "un dixième de seconde et un vingtième"),
        ("it", "un decimo di secondo"),
        ("de", "ein Zehntel und drei Zehntel"),
        ("ru", "одна десятая и одну десятую"),
        ("es", "subió tres décimas, y tres décimas"),
        ("fr", "trois dixièmes de seconde"),
        ("it", "tre decimi"),
        ("ru", "три десятых"),
        ("fr", "j'ai acheté un livre et trois livres"),
        ("es", "una libra de pan y dos libras de arroz"),
        ("en", "the score is three to two"),
        ("en", "they won by three to one"),
        ("en", "you may first want to sit down or second it since the second may fail"),
        ("de", "ich habe eine Uhr gekauft"),
        ("it", "le due e quattro stagioni"),
        ("it", "dall'una e due minuti"),
        ("fr", "pendant deux heures une foule"),
        ("fr", "deux heures un quart"),
        ("fr", "deux heures deux hommes"),
        ("es", "las dos horas siguientes"),
        ("es", "a las dos horas de llegar"),
        ("es", "a las siete y ocho personas"),
        ("es", "entre las siete y ocho"),
        ("it", "alle sette e otto persone"),
        ("it", "dalle sette e otto"),
    ],
)
def test_what_may_be_no_number_stays(language, text):
    assert written(text, language) == text


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "between two hundred and three hundred people", "between 200 and 300 people"),
        ("en", "between one hundred and two hundred, maybe", "between 100 and 200, maybe"),
        ("en", "between five thousand and ten thousand.", "between 5000 and 10000."),
        ("en", "between nine hundred and twenty five hundred", "between 900 and 2500"),
        ("en", "one hundred and two thousand", "102000"),
        ("en", "two hundred and three, hundred", "203, hundred"),
        ("en", "twenty five hundred and ten", "2510"),
        ("en", "fifty hundred thousand", "50 hundred thousand"),
        ("fr", "deux cents trois cents personnes", "200 300 personnes"),
        ("fr", "deux mille trois mille", "2000 3000"),
        ("fr", "deux cent mille personnes", "200000 personnes"),
        ("fr", "dix-sept cent quatre-vingt-neuf", "1789"),
        ("fr", "quinze cent quinze", "1515"),
        ("fr", "cinq euros quinze cents", f"5,15{NBSP}€"),
        ("fr", "mille neuf cent nonante-huit", "1998"),
        ("fr", "septante et un, huitante-deux et octante", "71, 82 et 80"),
        ("es", "dos mil tres mil", "2000 3000"),
        ("ru", "пять тысяч десять тысяч", "5000 10000"),
        ("ru", "двадцать одного человека", "21 человека"),
    ],
)
def test_neighbouring_numbers_are_kept_apart_and_one_number_is_not_cut(language, text, expected):
    assert written(text, language) == expected


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "it takes about ten to fifteen minutes", "it takes about 10 to 15 minutes"),
        ("en", "about five to ten percent", "about five to 10%"),
        ("en", "it is twenty to six", "it is 5:40"),
        ("en", "at ten to five", "at 4:50"),
        ("en", "ten minutes to five", "4:50"),
        ("en", "ten minutes to twenty", "10 minutes to 20"),
        ("en", "five minutes to ten minutes", "five minutes to 10 minutes"),
        ("es", "a las catorce horas", "a las 14:00"),
        ("es", "las veinticuatro horas del día", "las 24 horas del día"),
        ("en", "at ten to twenty places", "at 10 to 20 places"),
        ("en", "on May third and on the third of May", "on May 3rd and on the 3rd of May"),
        ("en", "May the fifth and May fifth", "May the 5th and May 5th"),
        ("en", "Wednesday May second", "Wednesday May 2nd"),
        ("en", "May first seventeen eighty-nine", "May 1st 1789"),
        ("en", "May thirteenth twenty twenty-four", "May 13th 2024"),
        ("es", "son las cinco y once", "son las 5:11"),
        ("it", "sono le diciotto e dodici", "sono le 18:12"),
        ("de", "zehn Minuten vor einer Prüfung", "10 Minuten vor einer Prüfung"),
        ("de", "zwanzig Minuten nach einer Operation", "20 Minuten nach einer Operation"),
        ("de", "zehn vor eins", "12:50"),
        ("de", "um fünf nach halb drei", "um 2:35"),
        ("de", "zehn Minuten vor halb acht", "7:20"),
        ("de", "fünf vor halb eins", "12:25"),
        ("ru", "в полвторого", "в 1:30"),
        ("ru", "полпервого", "12:30"),
        ("en", "my appointment is ten thirty", "my appointment is 10:30"),
        ("de", "um ein Uhr", f"um 1{NBSP}Uhr"),
        ("de", "das kostet einen Euro fünfzig", f"das kostet 1,50{NBSP}€"),
        ("de", "mit einem Prozent", f"mit 1{NBSP}%"),
        ("es", "entre las diez y once de la noche", "entre las 10 y 11 de la noche"),
        ("es", "a las diez y cinco", "a las 10:05"),
        ("es", "a las diecinueve once", "a las 19:11"),
        ("es", "sale a las siete y ocho, creo", "sale a las 7:08, creo"),
        ("es", "a las siete y ocho de la tarde", "a las 7:08 de la tarde"),
        ("es", "a las siete y ocho minutos", "a las 7:08"),
        ("es", "a la una y ocho", "a la 1:08"),
        ("it", "parte alle sette e otto.", "parte alle 7:08."),
        ("it", "alle sette e otto di sera", "alle 7:08 di sera"),
        ("it", "all'una e otto", "all'1:08"),
        ("it", "le dieci e venti", "le 10:20"),
        ("it", "all'una e dieci", "all'1:10"),
        ("fr", "à deux heures vingt et une", f"à 2{NBSP}h{NBSP}21"),
        ("fr", "à deux heures dix", f"à 2{NBSP}h{NBSP}10"),
        ("fr", "vers midi vingt, il pleut", f"vers 12{NBSP}h{NBSP}20, il pleut"),
        ("fr", "à minuit et quart", f"à 0{NBSP}h{NBSP}15"),
        ("fr", "il est midi moins le quart", f"il est 11{NBSP}h{NBSP}45"),
        ("fr", "minuit moins vingt", f"23{NBSP}h{NBSP}40"),
        ("it", "alle venti trenta", "alle 20:30"),
        ("ru", "в двадцать тридцать", "в 20:30"),
        ("ru", "в пять тридцать утра", "в 5:30 утра"),
        ("fr", "il est deux heures trois.", f"il est 2{NBSP}h{NBSP}03."),
        ("fr", "Deux heures cinq.", f"2{NBSP}h{NBSP}05."),
        ("fr", "pendant deux heures vingt personnes", "pendant deux heures 20 personnes"),
    ],
)
def test_times_and_dates_are_written_and_ranges_stay_ranges(language, text, expected):
    assert written(text, language) == expected


@pytest.mark.parametrize(
    "text", ["email me at @anna", "use #MeToo", "E = mc two", "track #1 and #12", "at @5 past #3, #2 euros ="]
)
def test_words_that_begin_with_a_sign_stay(text):
    assert written(text, "en") == text


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("de", "am elften.", "am 11."),
        ("de", "am elften, und am elften!", "am 11., und am 11.!"),
        ("de", "am dritten März.", "am 3. März."),
        ("en", "at seven p m.", f"at 7{NBSP}p.m."),
        ("en", "at seven p m, please", f"at 7{NBSP}p.m., please"),
        ("en", "it was twenty.", "it was 20."),
    ],
)
def test_a_sentence_ends_in_one_full_stop(language, text, expected):
    assert written(text, language) == expected


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "a tenth man on the tenth of May", "a 10th man on the 10th of May"),
        ("es", "la décima vez", "la 10ª vez"),
        ("fr", "le dixième homme", "le 10e homme"),
        ("it", "il decimo uomo", "il 10º uomo"),
        ("ru", "двадцать одна сотая и десятый день", "21 сотая и 10-й день"),
    ],
)
def test_ordinals_that_are_no_fractions_are_written(language, text, expected):
    assert written(text, language) == expected


def test_every_new_word_knows_the_words_it_was_made_from():
    words = ["on", "March", "third", "nineteen", "ninety-eight", "at", "half", "past", "five"]
    new = in_digits(words, "en")
    assert [one.text for one in new] == ["on", "March", "3rd", "1998", "at", "5:30"]
    spans = [(one.first, one.last) for one in new]
    assert [words[first : last + 1] for first, last in spans][2:4] == [
        ["third"],
        ["nineteen", "ninety-eight"],
    ]
    assert [n for first, last in spans for n in range(first, last + 1)] == list(range(len(words)))


def test_a_language_without_rules_keeps_its_words():
    assert written("twintig euro", "nl") == "twintig euro"


@pytest.mark.parametrize(
    ("language", "text", "result"),
    [
        ("en", "the one hundred and first", "the 101st"),
        ("en", "two hundred and twenty first", "221st"),
        ("en", "one hundred twentieth", "120th"),
        ("en", "two thousand and twelfth", "2012th"),
        ("en", "one hundred first graders", "100 first graders"),
        ("fr", "le cent deuxième", "le 102e"),
        ("fr", "deux cent unième", "201e"),
        ("fr", "le cent vingtième", "le 120e"),
        ("fr", "les cent premiers jours", "les 100 premiers jours"),
    ],
)
def test_ordinals_above_a_hundred(language, text, result):
    assert written(text, language) == result


@pytest.mark.parametrize(
    ("language", "text", "result"),
    [
        ("en", "ten dollars thirty years ago", "$10 30 years ago"),
        ("en", "ten dollars thirty a night", "$10.30 a night"),
        ("es", "cien euros veinte años", f"100{NBSP}€ 20 años"),
        ("fr", "vingt euros trente ans", f"20{NBSP}€ 30 ans"),
        ("it", "venti euro trenta anni", f"20{NBSP}€ 30 anni"),
        ("de", "zehn Euro zwanzig Jahre lang", f"10{NBSP}€ 20 Jahre lang"),
        ("ru", "десять рублей двадцать лет", f"10{NBSP}₽ 20 лет"),
        ("de", "ich war zehn vor drei Jahren", "ich war 10 vor drei Jahren"),
        ("de", "zwölf nach zwei Wochen", "12 nach zwei Wochen"),
        ("de", "um zehn Uhr zwanzig Leute", f"um 10{NBSP}Uhr 20 Leute"),
        ("fr", "à midi dix personnes", "à midi 10 personnes"),
        ("it", "alle venti trenta persone", "alle 20 30 persone"),
        ("ru", "в пять двадцать человек", "в пять 20 человек"),
        ("en", "my address is twelve forty five Main Street", "my address is 12 45 Main Street"),
        ("en", "I live at twelve forty five Main Street", "I live at 12 45 Main Street"),
    ],
)
def test_numbers_that_count_a_noun_are_no_cents_and_no_times(language, text, result):
    assert written(text, language) == result


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("two oh five a.m.", f"2:05{NBSP}a.m."),
        ("at five fifteen p.m., please", f"at 5:15{NBSP}p.m., please"),
        ("seven fifteen p. m.", f"7:15{NBSP}p.m."),
        ("seven pm", f"7{NBSP}p.m."),
        ("in the nineteen nineties", "in the 1990s"),
        ("the twenty twenties", "the 2020s"),
        ("the eighteen hundreds,", "the 1800s,"),
        ("twenty twenties in a wallet", "20 twenties in a wallet"),
    ],
)
def test_halves_of_the_day_and_decades(text, result):
    assert written(text, "en") == result


@pytest.mark.parametrize(
    ("language", "text", "wanted"),
    [
        ("en", "which one am I supposed to take", "which one am I supposed to take"),
        ("en", "at one am I left", "at 1\u00a0a.m. I left"),
        (
            "en",
            "a thirty second clip and a twenty second delay",
            "a 30\u00a0second clip and a 20\u00a0second delay",
        ),
        ("en", "every forty second", "every 40\u00a0second"),
        ("en", "the thirty second floor", "the 32nd floor"),
        ("en", "a thirty second of an inch", "a thirty second of an inch"),
        ("en", "in fifteen twenty minutes", "in 15 20 minutes"),
        ("en", "he was sixteen seventeen years old", "he was 16 17 years old"),
        ("en", "it takes about ten fifteen minutes", "it takes about 10 15 minutes"),
        ("en", "it is ten fifteen", "it is 10:15"),
        ("en", "in nineteen eighty people moved", "in 1980 people moved"),
        ("en", "a quarter of ten people", "a quarter of 10 people"),
        ("en", "a quarter of twelve is three", "a quarter of 12 is three"),
        ("en", "at a quarter of ten", "at 9:45"),
        ("ru", "через пять минут первый автобус", "через пять минут первый автобус"),
        ("ru", "пять минут первого", "12:05"),
        ("ru", "первая половина второго тайма", "первая половина второго тайма"),
        ("ru", "в половине второго мы поехали", "в 1:30 мы поехали"),
        ("ru", "двадцать третьего мая", "23 мая"),
        ("ru", "двадцать второго", "22-го"),
        ("fr", "à dix heures vingt personnes attendaient", "à 10 heures 20 personnes attendaient"),
        ("fr", "à dix heures vingt", "à 10\u00a0h\u00a020"),
        ("es", "a las diez veinte personas esperaban", "a las 10 20 personas esperaban"),
        ("es", "a las diez veinte", "a las 10:20"),
        ("it", "alle dieci e venti persone", "alle 10 e 20 persone"),
        ("it", "alle dieci e venti", "alle 10:20"),
        ("de", "Platz zwei vor drei Mannschaften", "Platz zwei vor drei Mannschaften"),
        ("de", "zehn nach drei Spielen", "10 nach drei Spielen"),
        ("de", "um zehn nach drei kam er", "um 3:10 kam er"),
        ("de", "es ist zehn vor drei.", "es ist 2:50."),
        ("de", "fünf Minuten vor drei kam er", "2:55 kam er"),
    ],
)
def test_numbers_of_what_is_counted_are_no_times_and_years(language, text, wanted):
    assert written(text, language) == wanted
