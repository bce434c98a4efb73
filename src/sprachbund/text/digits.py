"""Numbers of a text in digits: "am dritten März um halb sechs" becomes "am 3. März um 5:30".

A model that writes words only is easier to read this way (inverse text normalisation). Numbers are found in tables of
all spellings of a language. Rules then join them, with the words around them, to decimals, clock times, dates, years,
amounts of money and strings of digits. What no rule takes is written in digits from ten on: "one", "second" and the
like are often no numbers, and stay words. A clock time keeps the hour that was said, since "half past five" does not
say whether it was morning.

Every new word knows from which words it was made, so that the times of words survive.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise, product

LANGUAGES = ("en", "es", "fr", "it", "de", "ru")
"""BCP-47 tags of the languages that have rules."""
_LEAST = 10  # of what is written in digits though no rule says so
_NBSP = "\u00a0"
_PUNCTUATION = re.compile(r"[.,;:!?…»”\")]*$")


@dataclass(frozen=True, kw_only=True)
class WrittenWord:
    """A word of the new text.

    Attributes:
        text: as it is written now.
        first: index of the first word that it was made from.
        last: index of the last one.
    """

    text: str
    first: int
    last: int


def in_digits(words: Sequence[str], language: str) -> list[WrittenWord]:
    """The words of a text, with its numbers in digits.

    Args:
        words: words of the text, punctuation attached.
        language: BCP-47 tag; a language without rules keeps its words.
    """
    if language not in LANGUAGES:
        return [WrittenWord(text=word, first=n, last=n) for n, word in enumerate(words)]
    parts = _without_ends(list(_read_numbers(words, language)), language)
    for rule in _rules(language):
        parts = rule.apply(parts)
    parts = _without_fractions(parts, words, language)
    return [one for part in parts for one in part.written(words, language)]


# Spellings.
#
# Variants of a spelling stand behind each other with | between them. Hyphens count as spaces, ß as ss, ё as е.

_ONES = {
    "en": "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen",
    "es": "cero uno|un|una dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis "
    "diecisiete dieciocho diecinueve veinte veintiuno|veintiún|veintiuna veintidós veintitrés veinticuatro "
    "veinticinco veintiséis veintisiete veintiocho veintinueve",
    "fr": "zéro un|une deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix_sept "
    "dix_huit dix_neuf",
    "it": "zero uno|un|una due tre|tré quattro cinque sei sette otto nove dieci undici dodici tredici quattordici "
    "quindici sedici diciassette diciotto|dicotto diciannove",  # num2words writes "centodicotto"
    "de": "null eins|ein zwei|zwo drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn "
    "vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn",
    "ru": "ноль|нуль один|одна|одно|одну|одного два|две три четыре пять шесть семь восемь девять десять одиннадцать "
    "двенадцать тринадцать четырнадцать пятнадцать шестнадцать семнадцать восемнадцать девятнадцать",
}
_TENS = {
    "en": "twenty thirty forty fifty sixty seventy eighty ninety",
    "es": "veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa",
    "fr": "vingt trente quarante cinquante soixante soixante quatre_vingt|quatre_vingts quatre_vingt",
    "it": "venti trenta quaranta cinquanta sessanta settanta ottanta novanta",
    "de": "zwanzig dreissig vierzig fünfzig sechzig siebzig achtzig neunzig",
    "ru": "двадцать тридцать сорок пятьдесят шестьдесят семьдесят восемьдесят девяносто",
}
_ES_HUNDREDS = (
    "ciento|cien doscientos|doscientas trescientos|trescientas cuatrocientos|cuatrocientas quinientos|quinientas "
    "seiscientos|seiscientas setecientos|setecientas ochocientos|ochocientas novecientos|novecientas"
)
_RU_HUNDREDS = "сто двести триста четыреста пятьсот шестьсот семьсот восемьсот девятьсот"
_THOUSAND = {
    "en": "thousand",
    "es": "mil",
    "fr": "mille",
    "it": "mille|mila",
    "de": "tausend",
    "ru": "тысяч[аиу]?",
}
_HUNDRED = {"en": "hundred", "fr": "cents?"}  # where it is a word of its own
_ONE_WORD = ("it", "de")  # write a number below a million without spaces


def _plain(text: str) -> str:
    """A text as the tables have it."""
    lowered = text.lower().replace("-", " ").replace("\u2019", "'")
    return lowered.replace("ß", "ss").replace("ё", "е")


def _forms(names: str) -> list[list[str]]:
    return [[form.replace("_", " ") for form in name.split("|")] for name in names.split()]


def _joined(ten: str, one: str, value: int, language: str) -> str:
    match language:
        case "es":
            return f"{ten} y {one}"
        case "fr":
            return f"{ten} et {one}" if value % 20 in (1, 11) and value < 80 else f"{ten} {one}"
        case "it":
            return (ten[:-1] if one[0] in "uo" else ten) + one
        case "de":
            return f"{one}und{ten}"
    return f"{ten} {one}"


@cache
def _below_thousand(language: str) -> Mapping[str, int]:
    """All spellings of 0 to 999, and of larger numbers in hundreds where people say them: "dix-sept cent dix"."""
    ones = _forms(_ONES[language])
    spelled = dict(enumerate(ones))
    for n, tens in enumerate(_forms(_TENS[language]), 2):
        skipped = n in (7, 9) if language == "fr" else False  # soixante-dix, quatre-vingt-dix
        for below in range(20 if language == "fr" and n in (6, 8) else 10):
            value = 10 * n + below
            if not skipped and value not in spelled:
                both = product(tens, ones[below])
                spelled[value] = [_joined(*pair, value, language) for pair in both] if below else list(tens)
    table = {form: value for value, forms in spelled.items() for form in forms}
    if language == "fr":
        table |= _fr_elsewhere(ones)
    return table | {
        joined: hundred + value
        for hundred, names in _hundreds(table, language).items()
        for name in names
        for form, value in [("", 0), *((form, value) for form, value in table.items() if 0 < value < 100)]
        for joined in _behind_hundred(name, form, language)
    }


def _fr_elsewhere(ones: list[list[str]]) -> dict[str, int]:
    """Spellings of 70 to 99 in Belgium and Switzerland."""
    tens = {"septante": 70, "huitante": 80, "octante": 80, "nonante": 90}
    return tens | {
        f"{ten} {one}": value + below
        for ten, value in tens.items()
        for below, names in enumerate(ones[1:10], 1)
        for name in names
        for one in ([name, f"et {name}"] if below == 1 else [name])
    }


def _hundreds(below: Mapping[str, int], language: str) -> dict[int, list[str]]:
    """Names of hundreds, from the spellings of numbers below one hundred."""
    ones = _forms(_ONES[language])
    match language:
        case "es":
            return {100 * n: forms for n, forms in enumerate(_forms(_ES_HUNDREDS), 1)}
        case "ru":
            return {100 * n: forms for n, forms in enumerate(_forms(_RU_HUNDREDS), 1)}
        case "en":
            named = {100 * n: [f"{form} hundred"] for form, n in below.items() if n % 10}
            return named | {100: ["one hundred", "a hundred"]}
        case "de":
            named = {100 * n: [f"{form}hundert" for form in ones[n]] for n in range(2, 20) if n != 10}
            return named | {100: ["hundert", "einhundert"]}
        case "fr":
            named = {100 * n: [f"{ones[n][0]} cent", f"{ones[n][0]} cents"] for n in range(2, 10)}
            # "Quinze cents" may be an amount of money.
            return named | {100: ["cent"]} | {100 * n: [f"{ones[n][0]} cent"] for n in range(11, 20)}
    return {100: ["cento"]} | {100 * n: [f"{form}cento" for form in ones[n]] for n in range(2, 10)}


def _behind_hundred(hundred: str, form: str, language: str) -> list[str]:
    if not form:
        return [hundred]
    if language == "it":
        return [hundred + form, *([hundred[:-1] + form] if form.startswith("ott") else [])]
    if language == "de":
        return [hundred + form]
    return [f"{hundred} {form}", *([f"{hundred} and {form}"] if language == "en" else [])]


@cache
def _thousand(language: str) -> re.Pattern[str]:
    word = _THOUSAND[language]
    return re.compile(word if language in _ONE_WORD else rf"\b{word}\b")


def _cardinal(phrase: str, language: str) -> int | None:
    """The number below a million that a phrase spells; None if it is none. The phrase is as `_plain` gives it."""
    table = _below_thousand(language)
    if phrase in table:
        return table[phrase]
    english = language == "en"
    for match in _thousand(language).finditer(phrase):
        before, after = phrase[: match.start()].strip(), phrase[match.end() :].strip()
        many = 1 if before == ("a" if english else "") else table.get(before, 0)
        rest = table.get(after.removeprefix("and ") if english else after, 0)
        if 0 < many < 1000 and 0 <= rest < 1000 and bool(rest) == bool(after):
            return 1000 * many + rest
    return None


# Ordinals: the last part of a cardinal in another form.

_EN_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip
_ES_ORDINALS = "primer segund tercer cuart quint sext séptim octav noven décim"
_ES_TENTHS = (
    "décim vigésim|vigesim trigésim|trigesim cuadragésim|quadragésim quincuagésim|quincuagesim sexagésim|sexagesim "
    "septuagésim|septuagesim octogésim|octogesim nonagésim|nonagesim"
)
_IT_ORDINALS = "prim second terz quart quint sest settim ottav non decim"
_RU_ORDINALS = (
    "перв втор трет четверт пят шест седьм восьм девят десят одиннадцат двенадцат тринадцат четырнадцат пятнадцат "
    "шестнадцат семнадцат восемнадцат девятнадцат"
)
_RU_TENTHS = "двадцат тридцат сороков пятидесят шестидесят семидесят восьмидесят девяност"
_RU_HUNDREDTHS = "сот двухсот трехсот четырехсот пятисот шестисот семисот восьмисот девятисот"
_RU_ENDING = "(?:ый|ой|ий|ая|ое|ого|ому|ым|ом|ую|ых|ые|ья|ье|ьего|ьему|ьим|ьем|ью|ьей)"


@cache
def _ordinals(language: str) -> tuple[re.Pattern[str], Mapping[str, int]]:
    """Endings, and all ordinals up to 99 without them."""
    below = [(form, value) for form, value in _below_thousand(language).items() if 0 < value < 100]
    match language:
        case "en":
            return re.compile(""), {_ordinal_en(form): value for form, value in below}
        case "fr":
            stems = {_ordinal_fr(form): value for form, value in below if value > 1}
            return re.compile("(?:e|s|es)?"), stems | {"premier": 1, "premièr": 1, "unièm": 1}
        case "de":
            return re.compile("e[nrsm]?"), {_ordinal_de(form, value): value for form, value in below}
        case "it":
            stems = {f"{_ordinal_it(form)}": value for form, value in below if value > 10}
            return re.compile("[oaie]"), stems | {stem: n for n, stem in enumerate(_IT_ORDINALS.split(), 1)}
        case "es":
            return re.compile("(?:[oa]s?)?"), _ordinals_es()
    return re.compile(_RU_ENDING), _ordinals_ru()


def _ordinals_ru() -> dict[str, int]:
    first = {stem: n for n, stem in enumerate(_RU_ORDINALS.split(), 1)}
    tens = {stem: 10 * n for n, stem in enumerate(_RU_TENTHS.split(), 2)}
    both = {
        f"{ten} {stem}": 10 * n + value
        for n, (ten,) in enumerate(_forms(_TENS["ru"]), 2)
        for stem, value in first.items()
        if value < 10
    }
    hundreds = {stem: 100 * n for n, stem in enumerate(_RU_HUNDREDTHS.split(), 1)}
    return first | tens | both | hundreds | {"тысячн": 1000, "двухтысячн": 2000}


def _ordinal_en(form: str) -> str:
    head, space, last = form.rpartition(" ")
    plain = _EN_ORDINALS.get(last) or (f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")
    return head + space + plain


def _ordinal_fr(form: str) -> str:
    stem = {"cinq": "cinqu", "neuf": "neuv"}
    head, space, last = form.rpartition(" ")
    return (
        head
        + space
        + stem.get(last, last.removesuffix("s") if last == "vingts" else last.removesuffix("e"))
        + "ièm"
    )


def _ordinal_de(form: str, value: int) -> str:
    irregular = {1: "erst", 3: "dritt", 7: "siebt", 8: "acht"}
    return irregular.get(value) or form + ("t" if value < 20 else "st")


def _ordinal_it(form: str) -> str:
    return (form if form.endswith(("tre", "tré", "sei")) else form[:-1]).replace("tré", "tre") + "esim"


def _ordinals_es() -> dict[str, int]:
    ones = _ES_ORDINALS.split()
    stems = {stem: n for n, stem in enumerate(ones, 1)} | {"undécim": 11, "duodécim": 12}
    for n, names in enumerate(_forms(_ES_TENTHS), 1):
        for name in names:
            stems[name] = 10 * n
            for one, stem in enumerate(ones[:9], 1):
                plain = name.replace("é", "e")
                for gender in "oa":
                    stems |= {f"{name}{gender} {stem}": 10 * n + one, f"{plain}{gender}{stem}": 10 * n + one}
    return stems


def _ordinal(phrase: str, language: str) -> int | None:
    ending, stems = _ordinals(language)
    for cut in range(len(phrase), max(0, len(phrase) - 5), -1):
        if (value := stems.get(phrase[:cut])) is not None and ending.fullmatch(phrase[cut:]):
            return value
    # "One hundred and first", "cent deuxième", and years: "тысяча девятьсот девяносто восьмого".
    words = phrase.split(" ") if language in ("en", "fr", "ru") else []
    for n in range(1, len(words)):
        if words[n].startswith("premi"):  # "les cent premiers" are the first hundred
            continue
        joined = language == "en" and words[n] == "and"
        large = _cardinal(" ".join(words[:n]), language)
        small = _ordinal(" ".join(words[n + joined :]), language)
        if language == "en" and small and small < _LEAST and not joined:  # "one hundred first graders"
            continue
        if large and small and large % (100 if small < 100 else 1000) == 0 and small < 1000:
            return large + small
    return None


# Parts of a text: words and numbers, and then what the rules made of them.


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A word, a number, or what a rule has made.

    Attributes:
        first: index of its first word.
        last: index of its last one.
        code: as the rules see it: "#5" is the cardinal 5, "@5" the ordinal ("@5г" in the Russian genitive, as of
            hours), "=5.2" is done, everything else a word. A word that begins with one of these signs has a backslash
            before it.
        tail: punctuation behind it.
    """

    first: int
    last: int
    code: str
    tail: str = ""

    def written(self, words: Sequence[str], language: str) -> Iterator[WrittenWord]:
        """The words that it stands for, in digits where it is to be."""
        kind, text = self.code[:1], self.code[1:].removesuffix(_GENITIVE)
        bare = self.first == self.last and _thousand(language).fullmatch(_plain(words[self.last]))
        if kind in ("#", "@") and (int(text) < _LEAST or bare):  # "grazie mille" is no number
            kind = ""
        if kind == "@":
            text = _written_ordinal(int(text), words[self.last].removesuffix(self.tail), language)
        if kind in ("#", "@", "="):
            # "am elften." and "at seven p m." end in one full stop.
            tail = self.tail.removeprefix(".") if text.endswith(".") else self.tail
            yield WrittenWord(text=text + tail, first=self.first, last=self.last)
            return
        for n in range(self.first, self.last + 1):
            yield WrittenWord(text=words[n], first=n, last=n)


def _written_ordinal(value: int, word: str, language: str) -> str:
    match language:
        case "en":
            last = 0 if value % 100 in (11, 12, 13) else value % 10
            return f"{value}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(last, 'th') }"
        case "de":
            return f"{value}."
        case "fr":
            return f"{value}e" if value > 1 else "1re" if word.lower().endswith("e") else "1er"
        case "ru":  # one letter behind a vowel, else two
            return f"{value}-{word[-1] if word[-2] in 'аеёиоуыэюяь' else word[-2:]}"
    return f"{value}{'ª' if word.endswith(('a', 'as')) else 'º'}"


_LONGEST = 12  # words of a number


def _read_numbers(words: Sequence[str], language: str) -> Iterator[_Part]:
    """Words and numbers; of several readings the longest one that takes no word of the next number."""
    plain, n = [_plain(word) for word in words], 0
    known, longest = _number_words(language), 1 if language in _ONE_WORD else _LONGEST
    while n < len(words):
        part = hundreds = None
        end = n
        while end < min(len(words), n + longest):
            tail = _tail(plain[end])
            word = plain[end].removesuffix(tail)
            if not _may_belong(word, known, language):
                break
            phrase = " ".join([*plain[n:end], word])
            if (code := _number(phrase, language)) is not None:
                following = plain[end + 1].removesuffix(_tail(plain[end + 1])) if plain[end + 1 :] else ""
                large = [_is_large(one, language) for one in phrase.split(" ")]
                if any(large) and not tail and _is_large(following, language):
                    part = hundreds  # "two hundred and three" before "hundred"
                else:
                    part = _Part(first=n, last=end, code=code, tail=tail)
                    hundreds = part if large[-1] else hundreds
            end += 1
            if tail:
                break
        if part is None:
            tail = _tail(words[n])
            code = re.sub(r"^[#@=]", r"\\\g<0>", plain[n].removesuffix(tail).replace(" ", "-"))
            part = _Part(first=n, last=n, code=code, tail=tail)
        yield part
        n = part.last + 1


_GENITIVE = "г"


def _number(phrase: str, language: str) -> str | None:
    """The code of a number; None if the phrase is none."""
    if (value := _cardinal(phrase, language)) is not None:
        return f"#{value}"
    value = _ordinal(phrase, language)
    if value is None:
        return None
    return f"@{value}{_GENITIVE if language == 'ru' and phrase.endswith(('ого', 'его')) else ''}"


def _is_large(word: str, language: str) -> bool:
    """Whether a word is a hundred or a thousand."""
    return bool(_thousand(language).fullmatch(word) or re.fullmatch(_HUNDRED.get(language, "(?!)"), word))


def _tail(word: str) -> str:
    match = _PUNCTUATION.search(word)
    return match[0] if match and match[0] != word else ""


@cache
def _number_words(language: str) -> frozenset[str]:
    """Words that occur in numbers below a thousand, and in ordinals."""
    tables = (
        *_below_thousand(language),
        *_ordinals(language)[1],
        *(["a", "and"] if language == "en" else []),
    )
    return frozenset(word for phrase in tables for word in phrase.split(" "))


def _may_belong(word: str, known: frozenset[str], language: str) -> bool:
    """Whether a word may be part of a number; it spares the tables most words of a text."""
    ending, thousand = _ordinals(language)[0], _thousand(language)
    return language in _ONE_WORD or all(
        one in known
        or thousand.fullmatch(one)
        or any(
            one[:cut] in known and ending.fullmatch(one[cut:])
            for cut in range(max(0, len(one) - 5), len(one))
        )
        for one in word.split(" ")
    )


_MILLIONS = {
    "en": r"(?:m|b|tr)illions?",
    "es": r"(?:m|b)ill(?:ón|ones)",
    "fr": r"(?:million|milliard|billion)s?",
    "it": r"mili(?:one|oni|ardo|ardi)",
    "de": r"(?:million|milliarde|billion)(?:en|n)?",
    "ru": r"(?:миллион|миллиард)(?:а|у|ом|е|ы|ов|ам|ами|ах)?",
}
_AND = {"en": "and", "es": "y", "fr": "et", "it": "e", "de": "und", "ru": "и"}


def _without_ends(parts: Sequence[_Part], language: str) -> list[_Part]:
    """Make words of numbers behind a word such as "million", for they are the end of a larger number.

    "One million 300" would be none. In languages that write a number as one word, so is "mille e duecento".
    """
    millions, kept = re.compile(_MILLIONS[language]), list[_Part]()
    for n, part in enumerate(parts):
        before = n - 2 if n > 1 and parts[n - 1].code == _AND[language] and not parts[n - 1].tail else n - 1
        if part.code.startswith("#") and before >= 0 and not parts[before].tail:
            thousand = language in _ONE_WORD and before == n - 2 and parts[before].code == "#1000"
            if millions.fullmatch(parts[before].code) or thousand:
                part = replace(part, code=part.code[1:])  # a number that is a word
        kept.append(part)
    return kept


_PLURAL = {"es": ("s",), "fr": ("s",), "it": ("i", "e"), "ru": ("ых", "их")}


def _without_fractions(parts: Sequence[_Part], words: Sequence[str], language: str) -> list[_Part]:
    """Make words of ordinals behind a number that they are a fraction of: "trois dixièmes", "un dixième".

    "Un dixième" may be a tenth person, too, and stays as it was said. English "a tenth" is a fraction before "of";
    German has another word, "ein Zehntel".
    """
    kept = list(parts[:1])
    for n, (before, part) in enumerate(pairwise(parts), 1):
        if part.code.startswith("@") and not before.tail and language != "de":
            if before.code.startswith("#"):
                plural = words[part.last].removesuffix(part.tail).lower().endswith(_PLURAL.get(language, ()))
                is_fraction = plural or _is_single(before.code, language)
            else:
                is_fraction = [one.code + one.tail for one in parts[n - 1 : n + 2]] == ["a", part.code, "of"]
            if is_fraction:
                part = replace(part, code=part.code[1:])
        kept.append(part)
    return kept


def _is_single(code: str, language: str) -> bool:
    """Whether a noun behind a number is in the singular; in Russian it is behind 21, too."""
    return code == "#1" or (language == "ru" and re.fullmatch(r"#(?:\d*[02-9])?1", code) is not None)


# Rules.


@dataclass(frozen=True)
class _Rule:
    """Joins parts to one.

    Attributes:
        pattern: pattern of the codes of neighbours, with spaces between them; what it captures in the group `keep`, if
            it has one, stays before the new part.
        make: the new text, from the groups; None leaves the parts as they are.
    """

    pattern: re.Pattern[str]
    make: Callable[[re.Match[str]], str | None]

    def apply(self, parts: list[_Part]) -> list[_Part]:
        """Replace what matches."""
        codes = " ".join(part.code + ("," if part.tail else "") for part in parts)
        out, done = list[_Part](), 0
        for match in self.pattern.finditer(codes):
            start = (
                match.end("keep") if "keep" in self.pattern.groupindex and match["keep"] else match.start()
            )
            first, last = codes[:start].count(" "), codes[: match.end()].count(" ")
            if first < done or (text := self.make(match)) is None:
                continue
            out += parts[done:first]
            ends = parts[first], parts[last]
            out.append(_Part(first=ends[0].first, last=ends[1].last, code=f"={text}", tail=ends[1].tail))
            done = last + 1
        return out + parts[done:]


def _rule(pattern: str, make: Callable[[re.Match[str]], str | None]) -> _Rule:
    """A rule for whole parts; N in a pattern is a cardinal, O an ordinal, and G one in the Russian genitive."""
    numbers = pattern.replace("<N>", r"#(\d+)").replace("<O>", rf"@(\d+){_GENITIVE}?")
    numbers = numbers.replace("<G>", rf"@(\d+){_GENITIVE}")
    return _Rule(re.compile(rf"(?<!\S)(?:{numbers})(?=,?(?: |$))"), make)


def _clock(hour: str, minute: int, *, before: bool = False, between: str = ":", unit: str = "") -> str | None:
    """A clock time; None where there is no such.

    Args:
        hour: as it was said.
        minute: past the hour, or to it.
        before: whether it is to it.
        between: hour and minute.
        unit: unit behind the number.
    """
    h = int(hour)
    if before:
        h, minute = (h - 1 if h > 1 else 12), 60 - minute
    return f"{h}{between}{minute:02}{unit}" if h < 25 and 0 <= minute < 60 else None


def _clock_fr(name: str, minute: int, *, before: bool = False) -> str | None:
    """A time past noon or midnight, or before it; see `_clock`."""
    hour = "12" if name == "midi" else "24" if before else "0"
    return _clock(hour, minute, before=before, between=f"{_NBSP}h{_NBSP}")


def _half_ru(match: re.Match[str]) -> str | None:
    """The time of "полвторого", half an hour before the second hour has passed."""
    hour = _ordinal(match[1], "ru")
    return _clock(str(hour), 30, before=True) if hour and hour < 13 and match[1].endswith("го") else None


_MONTHS = {
    "en": "january february march april may june july august september october november december",
    "es": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
    "it": "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
    "de": "januar februar märz april mai juni juli august september oktober november dezember",
    "ru": "января февраля марта апреля мая июня июля августа сентября октября ноября декабря",
}
_DECADES = {
    "hundreds": "00", "twenties": "20", "thirties": "30", "forties": "40", "fifties": "50", "sixties": "60",
    "seventies": "70", "eighties": "80", "nineties": "90",
}  # fmt: skip
_POINT = {"en": "point", "es": "coma", "fr": "virgule", "it": "virgola", "de": "komma"}
_PERCENT = {
    "en": "percent|per cent", "es": "por #100", "fr": "pour #100", "it": "per #100", "de": "prozent",
    "ru": "процент(?:а|ов)?",
}  # fmt: skip
_BEFORE_CENTS = {"en": "and", "es": "con|y", "fr": "et", "it": "e", "de": "und", "ru": "и"}
_BEFORE_BARE_CENTS = {
    "es": r"(?:con (?=#\d+(?:,|$| (?:al?|el|la|por|cada)(?: |$))))?",
    "it": r"(?:e (?=#\d+(?:,|$| (?:al?|all[ao]|all'[^ ,]+|per|ogni)(?:,| |$))))?",
}
"""The same before cents without a name, where no other noun is behind that may be counted."""
_CURRENCIES = {
    "€": {"en": "euros?", "es": "euros?", "fr": "euros?", "it": "euro", "de": "euro", "ru": "евро"},
    "$": {
        "en": "dollars?", "es": "dólar(?:es)?", "fr": "dollars?", "it": "dollar[oi]", "de": "dollar",
        "ru": "доллар(?:а|ов)?",
    },
    "£": {
        "en": "pounds? sterling", "es": "libras? esterlinas?", "fr": "livres? sterlings?", "it": "sterlin[ae]",
        "de": "pfund sterling", "ru": "фунт(?:а|ов)? стерлингов",
    },
    "₽": {
        "en": "rou?bles?", "es": "rublos?", "fr": "roubles?", "it": "rubl[oi]", "de": "rubel",
        "ru": "рубл(?:ь|я|ей)",
    },
    "¥": {"en": "yen", "es": "yen(?:es)?", "fr": "yens?", "it": "yen", "de": "yen", "ru": "иен(?:а|ы|у)?"},
}  # fmt: skip
_CENTS = {
    "en": "cents?|pence|kopecks?", "es": "céntimos?|centavos?|peniques?|kopeks?",
    "fr": "centimes?|cents?|pence|kopecks?",
    "it": "centesim[oi]|cent|pence|copec(?:o|hi)", "de": "cents?|pence|kopeken?",
    "ru": "цент(?:а|ов)?|копе(?:йка|йки|ек|йку)|пенс(?:а|ов)?|пенни",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Pound:
    """A word for money or a weight, which is money behind a word of paying, and before a smaller coin.

    Attributes:
        names: pattern of the word.
        paying: pattern of the words of paying.
        small: pattern of smaller coins without a name that are money anywhere; "seven pounds twelve" may be ounces.
        behind: pattern of words that may stand behind such coins; another may be what is counted, as in "twenty years".
    """

    names: str
    paying: str
    small: str
    behind: str


_POUNDS = {
    "en": _Pound(
        names="pounds?",
        paying="(?:costs?|pay|pays|paid|spend|spends|spent)(?: about| only| just)?",
        small=r"1[6-9]|[2-9]\d",
        behind="per|in|a|an|each|for|and|or|please",
    ),
    "de": _Pound(
        names="pfund",
        paying="(?:kostet|kosten|kostete|kosteten|(?:be)?zahl(?:e|t|en|te|ten)(?: sie)?)(?: etwa| nur| rund)?",
        small=r"[1-9]\d",
        behind="pro|je|insgesamt|für|im|in|und|oder|bitte",
    ),
    "ru": _Pound(
        names="фунт(?:а|ов)?",
        paying="(?:сто(?:ит|ят|ил|ила|ило|или)|(?:за)?плат(?:ишь|ит|им|ите|ят|ил|ила|или))(?: около| всего)?",
        small=r"[1-9]\d",
        behind="за|в|на|и|или",
    ),
}


@cache
def _rules(language: str) -> tuple[_Rule, ...]:
    """The rules of a language, in their order."""
    return (
        *_decimals(language),
        *_TIMES[language],
        *_dates(language),
        *_digit_strings(language),
        *_amounts(language),
    )


def _decimals(language: str) -> list[_Rule]:
    if language == "ru":
        powers = {"10": 1, "100": 2, "1000": 3}
        return [
            _rule(
                r"<N> цел(?:ая|ых|ые|ую) <N> <O>",
                lambda m: f"{m[1]},{m[2].zfill(powers[m[3]])}" if m[3] in powers else None,
            )
        ]
    sign = "." if language == "en" else ","
    # Digits one by one, or, in the Romance languages, a number behind zeros.
    digits = rf"<N> {_POINT[language]}((?: #\d)+)(?! #)"
    rules = [_rule(digits, lambda m: f"{m[1]}{sign}{re.sub('[ #]', '', m[2])}")]
    if language in ("es", "fr", "it"):
        behind = rf"<N> {_POINT[language]}((?: #0)*) <N>"
        rules.append(_rule(behind, lambda m: f"{m[1]}{sign}{re.sub('[ #]', '', m[2])}{m[3]}"))
    return rules


_HALF_DAY = r"([ap])(?:,? |\.)?m"  # "a m", "a. m.", "a.m.", "am"
_COUNTED = {
    "en": "(?:second|minute|hour|day|night|week|month|year|time)s?|people",
    "es": "segundos?|minutos?|horas?|días?|noches?|semanas?|mes(?:es)?|años?|vez|veces|personas?",
    "fr": "secondes?|minutes?|heures?|jours?|nuits?|semaines?|mois|ans?|années?|fois|personnes?",
    "it": "second[oi]|minut[oi]|or[ae]|giorn[oi]|nott[ei]|settiman[ae]|mes[ei]|ann[oi]|volt[ae]|person[ae]",
    "de": "(?:sekunde|minute|stunde|woche|person)n?|(?:tag|monat|jahr)(?:en?)?|mal|leuten?|menschen",
    "ru": r"(?:секунд|минут|недел|месяц)\w*|час(?:а|ов)?|день|дня|дней|год(?:а|у)?|лет|раза?|человека?",
}
"""Nouns that a number in front of them counts: "ten dollars thirty years ago" is no amount with thirty cents."""


def _uncounted(language: str, others: str = "(?!)") -> str:
    """No such noun is behind, nor one of others."""
    return rf"(?! (?:{others}|(?:{_COUNTED[language]})(?:,| |$)))"


_MINUTE = r"#(5|10|1[3-9]|[2-5]\d)"  # said with "and" behind an hour; others may be "las diez y once"
# Behind "a las siete y ocho", which is a time where no noun follows: "a las siete y ocho personas" is none.
_ES_TIME_ENDS = (
    r"(?: minutos?(?! (?:después|antes|más))|(?=,|$| de la (?:mañana|tarde|noche|madrugada)(?:,| |$)))"
)
_IT_TIME_ENDS = (
    r"(?: minut[oi](?! (?:dopo|prima|fa))"
    r"|(?=,|$| (?:di (?:mattina|sera|notte)|del (?:mattino|pomeriggio)|della (?:mattina|sera))(?:,| |$)))"
)
_EN_NO_ADDRESS = r"(?! \S+ (?:street|avenue|road|lane|drive|boulevard)(?:,| |$))"
_RU_NO_PART = (
    r"(?! (?:тайма|периода|раунда|сезона|этапа|акта|тома|квартала|семестра|курса|класса|месяца|года|века|тысячелетия)"
    r"(?:,| |$))"
)
"""No noun is behind of which a half or a quarter may be: "половина второго тайма"."""
_DE_BEFORE_TIME = "(?:um|kurz|gegen|bis|ab|seit|erst|schon|es ist|ist es)"
_RU_TIME_ENDS = "(?=,|$| (?:утра|дня|вечера|ночи)(?:,| |$))"
_FR_BEFORE_TIME = "(?:à|est|vers|jusqu'à|avant)"
_FR_NO_DURATION = "".join(rf"(?<!\b{word} )" for word in ("pendant", "durant", "depuis", "dans", "en", "les"))
_TIMES: dict[str, list[_Rule]] = {
    "en": [
        _rule(r"half past <N>", lambda m: _clock(m[1], 30)),
        _rule(r"(?:a )?quarter past <N>", lambda m: _clock(m[1], 15)),
        _rule(r"(?:a )?quarter to <N>", lambda m: _clock(m[1], 15, before=True)),
        # "A quarter of ten people" is no time.
        _rule(
            r"(?P<keep>(?:at|it is|it's|until|by) )(?:a )?quarter of <N>(?=,|$| in )",
            lambda m: _clock(m[2], 15, before=True),
        ),
        _rule(r"<N> (?:minutes? )?past <N>", lambda m: _clock(m[2], int(m[1]))),
        # "ten to twelve" may be a range, and "three to two" a score.
        _rule(
            r"(?P<keep>(?:at|it is|it's|until) )#(5|10|20|25) to #([1-9]|1[0-2])",
            lambda m: _clock(m[3], int(m[2]), before=True),
        ),
        _rule(
            r"<N> minutes? to #([1-9]|1[0-2])(?! (?:minutes|hours))",
            lambda m: _clock(m[2], int(m[1]), before=True),
        ),
        _rule(r"<N> o'clock", lambda m: _clock(m[1], 0)),
        _rule(
            rf"<N> (?:oh|o) #(\d) {_HALF_DAY}", lambda m: _clock(m[1], int(m[2]), unit=f"{_NBSP}{m[3]}.m.")
        ),
        _rule(rf"<N> #(\d\d) {_HALF_DAY}", lambda m: _clock(m[1], int(m[2]), unit=f"{_NBSP}{m[3]}.m.")),
        _rule(
            rf"(?P<keep>(?:at|by|from|to|until|till|before|after|about|around) )<N> {_HALF_DAY}",
            lambda m: f"{m[2]}{_NBSP}{m[3]}.m." if int(m[2]) < 13 else None,
        ),
        # "Which one am I" is no time.
        _rule(
            rf"<N> {_HALF_DAY}(?! i(?:,| |$))",
            lambda m: f"{m[1]}{_NBSP}{m[2]}.m." if int(m[1]) < 13 else None,
        ),
        _rule(
            r"(?P<keep>(?:at|is|it's|by|until|about|before|after) )"
            rf"#(\d|1[0-2]) (?:(?:oh|o) #(\d)|#(\d\d))(?! [#@]){_EN_NO_ADDRESS}{_uncounted('en')}",
            lambda m: _clock(m[2], int(m[3] or m[4])),
        ),
    ],
    "es": [
        _rule(r"(?P<keep>las? )<N> y media", lambda m: _clock(m[2], 30)),
        _rule(r"(?P<keep>las? )<N> y @4", lambda m: _clock(m[2], 15)),
        _rule(r"(?P<keep>las? )<N> menos @4", lambda m: _clock(m[2], 15, before=True)),
        _rule(r"(?P<keep>las? )<N> menos <N>", lambda m: _clock(m[2], int(m[3]), before=True)),
        _rule(r"(?P<keep>(?:son las|es la) )<N> y <N>", lambda m: _clock(m[2], int(m[3]))),
        _rule(rf"(?P<keep>a las? )<N> y <N>{_ES_TIME_ENDS}", lambda m: _clock(m[2], int(m[3]))),
        _rule(
            rf"(?P<keep>las? )(?:<N> y {_MINUTE}|<N> <N>){_uncounted('es')}",
            lambda m: _clock(m[2] or m[4], int(m[3] or m[5])),
        ),
        # "A las dos horas" is two hours later, and "las veinticuatro horas" are a day.
        _rule(r"(?P<keep>(?:a|son|desde|hasta) las )#(1[3-9]|2[0-4]) horas", lambda m: _clock(m[2], 0)),
    ],
    "fr": [
        _rule(r"<N> heures? et demie?", lambda m: _clock(m[1], 30, between=f"{_NBSP}h{_NBSP}")),
        _rule(r"<N> heures? et quart", lambda m: _clock(m[1], 15, between=f"{_NBSP}h{_NBSP}")),
        _rule(
            r"<N> heures? moins le quart", lambda m: _clock(m[1], 15, before=True, between=f"{_NBSP}h{_NBSP}")
        ),
        _rule(
            r"<N> heures? moins <N>",
            lambda m: _clock(m[1], int(m[2]), before=True, between=f"{_NBSP}h{_NBSP}"),
        ),
        # "Pendant deux heures vingt personnes" and "deux heures trois hommes" are no times.
        _rule(
            rf"(?P<keep>{_FR_BEFORE_TIME} )<N> heures? #([2-9])",
            lambda m: _clock(m[2], int(m[3]), between=f"{_NBSP}h{_NBSP}"),
        ),
        _rule(
            rf"{_FR_NO_DURATION}<N> heures? #(5|[1-5]\d){_uncounted('fr')}",
            lambda m: _clock(m[1], int(m[2]), between=f"{_NBSP}h{_NBSP}"),
        ),
        _rule(r"(midi|minuit) et demie?", lambda m: _clock_fr(m[1], 30)),
        _rule(r"(midi|minuit) et quart", lambda m: _clock_fr(m[1], 15)),
        _rule(r"(midi|minuit) moins le quart", lambda m: _clock_fr(m[1], 15, before=True)),
        _rule(r"(midi|minuit) moins <N>", lambda m: _clock_fr(m[1], int(m[2]), before=True)),
        # "À midi dix personnes" is no time.
        _rule(rf"(?P<keep>{_FR_BEFORE_TIME} )(midi|minuit) <N>(?=,|$)", lambda m: _clock_fr(m[2], int(m[3]))),
    ],
    "it": [
        _rule(r"(?P<keep>(?:d?alle|le) )<N> e (?:mezza|mezzo)", lambda m: _clock(m[2], 30)),
        _rule(r"(?P<keep>(?:d?alle|le) )<N> e #1 @4", lambda m: _clock(m[2], 15)),
        _rule(r"(?P<keep>(?:d?alle|le) )<N> meno #1 @4", lambda m: _clock(m[2], 15, before=True)),
        _rule(r"(?P<keep>(?:d?alle|le) )<N> meno <N>", lambda m: _clock(m[2], int(m[3]), before=True)),
        _rule(r"(?P<keep>sono le )<N> e <N>", lambda m: _clock(m[2], int(m[3]))),
        _rule(rf"(?P<keep>alle )<N> e <N>{_IT_TIME_ENDS}", lambda m: _clock(m[2], int(m[3]))),
        _rule(
            rf"(?P<keep>(?:d?alle|le) )<N> e {_MINUTE}{_uncounted('it')}", lambda m: _clock(m[2], int(m[3]))
        ),
        _rule(rf"(?P<keep>alle )<N> #([1-5]\d){_IT_TIME_ENDS}", lambda m: _clock(m[2], int(m[3]))),
        _rule(r"(l'|d?all')una e (?:mezza|mezzo)", lambda m: f"{m[1]}1:30"),
        _rule(r"(l'|d?all')una e #1 @4", lambda m: f"{m[1]}1:15"),
        _rule(rf"(all')una e #([1-5]?\d){_IT_TIME_ENDS}", lambda m: f"{m[1]}1:{m[2]:>02}"),
        _rule(rf"(l'|d?all')una e {_MINUTE}", lambda m: f"{m[1]}1:{m[2]:>02}"),
    ],
    "de": [
        _rule(r"<N> (?:minuten? )?vor halb <N>", lambda m: _clock(m[2], 30 + int(m[1]), before=True)),
        _rule(r"<N> (?:minuten? )?nach halb <N>", lambda m: _clock(m[2], 30 - int(m[1]), before=True)),
        _rule(r"halb <N>", lambda m: _clock(m[1], 30, before=True)),
        _rule(r"viertel nach <N>", lambda m: _clock(m[1], 15)),
        _rule(r"viertel vor <N>", lambda m: _clock(m[1], 15, before=True)),
        _rule(r"dreiviertel <N>", lambda m: _clock(m[1], 15, before=True)),
        _rule(rf"<N> uhr <N>{_uncounted('de')}", lambda m: _clock(m[1], int(m[2]), unit=f"{_NBSP}Uhr")),
        _rule(r"<N> uhr", lambda m: f"{m[1]}{_NBSP}Uhr" if int(m[1]) < 25 else None),
        *(
            _rule(
                rf"{front}#(?P<minute>\d+) {between}(?P<way>vor|nach) #(?P<hour>\d+){behind}",
                lambda m: _clock(m["hour"], int(m["minute"]), before=m["way"] == "vor"),
            )
            # "Zehn vor drei Jahren" is no time, and "Platz zwei vor drei Mannschaften" neither.
            for front, between, behind in (
                ("", "minuten? ", _uncounted("de")),
                (f"(?P<keep>{_DE_BEFORE_TIME} )", "", _uncounted("de")),
                ("", "", "(?=,|$)"),
            )
        ),
    ],
    "ru": [
        _rule(rf"половин[аеуы] <G>{_RU_NO_PART}", lambda m: _clock(m[1], 30, before=True)),
        _rule(r"пол([а-я]+)", _half_ru),
        _rule(rf"четверть <G>{_RU_NO_PART}", lambda m: _clock(m[1], 45, before=True)),
        _rule(r"без четверти <N>", lambda m: _clock(m[1], 15, before=True)),
        _rule(r"без четверти час", lambda m: "12:45"),
        _rule(r"<N> час(?:а|ов)? <N> минут[аыу]?", lambda m: _clock(m[1], int(m[2]))),
        _rule(rf"<N> минут[аыу]? <G>{_RU_NO_PART}", lambda m: _clock(m[2], 60 - int(m[1]), before=True)),
        # "В пять двадцать человек" is no time.
        _rule(rf"(?P<keep>в )<N> #([1-5]\d){_RU_TIME_ENDS}", lambda m: _clock(m[2], int(m[3]))),
    ],
}


def _dates(language: str) -> list[_Rule]:
    months = "|".join(_MONTHS[language].split())
    day = r"[#@](3[01]|[12]?\d)"
    match language:
        case "en":
            ordinal = lambda m: _written_ordinal(int(m["day"]), "", "en")  # noqa: E731
            # "You may first", "the second may": there "may" is a verb.
            others, year = months.replace("|may|", "|"), r"#(?:1[5-9]|20) #"
            before_may = "on|(?:mon|tues|wednes|thurs|fri|satur|sun)day"
            may = rf"(?:{before_may}) may |may (?:the |(?!@[12]\b(?! {year})))"
            return [
                _rule(rf"(?P<keep>(?:{others}) (?:the )?|{may})@(?P<day>3[01]|[12]?\d)", ordinal),
                _rule(rf"@(?P<day>3[01]|[12]?\d)(?= of (?:{months})| (?:{others}))", ordinal),
                _rule(
                    rf"(?<!\d )#(1[5-9]|20) #(\d\d)(?! [#@])(?P<counted>(?= (?:{_COUNTED['en']})(?:,| |$)))?",
                    lambda m: None if m["counted"] is not None and _is_about(m[1], m[2]) else f"{m[1]}{m[2]}",
                ),
                # "A thirty second clip" is one of seconds.
                _rule(
                    rf"(?P<keep>(?:a|every|each) )@([2-9])2(?! (?:of|{months})(?:,| |$))",
                    lambda m: f"{m[2]}0{_NBSP}second",
                ),
                _rule(r"(?<!\d )#(1[5-9]|20) (?:oh|o) #(\d)(?! [#@])", lambda m: f"{m[1]}0{m[2]}"),
                # "Twenty twenties" may be banknotes.
                _rule(
                    rf"(?:#(1[89])|(?<=the )#(1[5-7]|20)) ({'|'.join(_DECADES)})",
                    lambda m: f"{m[1] or m[2]}{_DECADES[m[3]]}s",
                ),
            ]
        case "de":
            return [_rule(rf"@(3[01]|[12]?\d)(?= (?:{months}))", lambda m: f"{m[1]}.")]
        case "fr":
            return [
                _rule(rf"@1(?= (?:{months}))", lambda m: "1er"),
                _rule(rf"#(3[01]|[12]?\d)(?= (?:{months}))", lambda m: m[1]),
            ]
        case "it":
            return [
                _rule(rf"@1(?= (?:{months}))", lambda m: "1º"),
                _rule(rf"(l'|(?:a|da|de)ll')otto(?= (?:{months}))", lambda m: f"{m[1]}8"),
                _rule(rf"(l'|(?:a|da|de)ll')undici(?= (?:{months}))", lambda m: f"{m[1]}11"),
                _rule(rf"#(3[01]|[12]?\d)(?= (?:{months}))", lambda m: m[1]),
            ]
        case "es":
            return [_rule(rf"{day}(?= de (?:{months}))", lambda m: m[1])]
    return [
        _rule(rf"@(3[01]|[12]?\d){_GENITIVE}?(?= (?:{months}))", lambda m: m[1]),
        _rule(rf"@(\d{{4}}){_GENITIVE}?(?= год)", lambda m: m[1]),
    ]


def _is_about(low: str, high: str) -> bool:
    """Whether two numbers are one that is not exactly known: "fifteen twenty minutes", "sixteen seventeen years"."""
    apart = int(high) - int(low)
    return apart == 1 or (0 < apart <= 10 and int(low) % 5 == int(high) % 5 == 0)


def _digit_strings(language: str) -> list[_Rule]:
    """Three digits and more that are said one by one, and what may follow in telephone numbers.

    These begin with zero, and have pairs behind the digits, as in "null eins sieben sechs dreiundzwanzig": 0176 23.
    French says pairs from the start: "zéro six douze trente-quatre" is 06 12 34. English says "oh" for zero among
    other digits, and "double four".
    """
    digit = r"(?:double |triple )?(?:#\d|oh)" if language == "en" else r"#\d"
    rules = [
        _rule(r"(?<!\d )#0(?: #\d){2,}(?: #\d\d)+(?! [#@])", _phone),
        _rule(rf"(?<!\d )(?<!double )(?<!triple )(?<!oh ){digit}(?: {digit})+(?! [#@])", _digits),
    ]
    if language == "fr":
        rules.insert(0, _rule(r"(?<!\d )#0 #\d(?: (?:#0 #\d|#\d\d))+(?! [#@])", _phone_fr))
    return rules


def _digits(match: re.Match[str]) -> str | None:
    """Digits without spaces; None where it may be something else: two numbers, or "oh" behind which few digits are."""
    several = re.sub(r"(double|triple) (#\d|oh)", lambda m: m[2] * (2 if m[1] == "double" else 3), match[0])
    digits = re.sub("[ #]", "", several.replace("oh", "0"))
    return None if len(digits) < (4 if match[0].startswith("oh") else 3) else digits


def _phone(match: re.Match[str]) -> str:
    """Digits one by one, and the pairs behind them."""
    digits = re.match(r"#\d(?: #\d(?!\d))*", match[0])[0]  # type: ignore[index]
    return re.sub("[ #]", "", digits) + match[0][len(digits) :].replace("#", "").replace(" ", _NBSP)


def _phone_fr(match: re.Match[str]) -> str:
    """Pairs of digits."""
    return match[0].replace("#0 #", "#0").replace("#", "").replace(" ", _NBSP)


def _amounts(language: str) -> list[_Rule]:
    one = "|eine[nmr]?" if language == "de" else ""  # elsewhere "eine" is an article: "eine Uhr"
    number = rf"(?:[#=](?P<whole>\d+(?:[.,]\d+)?){one})"
    joint, cents = f"(?:{_BEFORE_CENTS[language]}) ", f"(?:{_CENTS[language]})"
    named = f" (?:{joint})?#(?P<named>[1-9]\\d?) {cents}"
    bare = rf" {_BEFORE_BARE_CENTS.get(language, '')}#(?P<bare>[1-9]\d){_uncounted(language, cents)}"
    rules = [
        _rule(rf"{number} (?:{names[language]})(?:{named}|{bare})?", _money(sign, language))
        for sign, names in _CURRENCIES.items()
    ]
    if (pound := _POUNDS.get(language)) is not None:
        pounds, money = f"{number} (?:{pound.names})", _money("£", language)
        ends = f"(?=,|$| (?:{pound.behind})(?:,| |$))"
        rules += [
            _rule(f"(?P<keep>{pound.paying} ){pounds}(?:{named}|{bare}{ends})?", money),
            _rule(f"{pounds}(?:{named}| #(?P<bare>{pound.small}){ends})", money),
        ]
    percent = "%" if language in ("en", "it") else f"{_NBSP}%"
    rules.append(_rule(rf"{number} (?:{_PERCENT[language]})", lambda m: f"{m['whole'] or 1}{percent}"))
    return rules


def _money(sign: str, language: str) -> Callable[[re.Match[str]], str]:
    """Writes an amount whose groups are `whole`, and `named` or `bare` for the smaller coin."""

    def make(match: re.Match[str]) -> str:
        point = "." if language == "en" else ","
        whole, small = match["whole"] or "1", match["named"] or match["bare"]
        amount = f"{whole}{point}{int(small):02}" if small else whole
        return f"{sign}{amount}" if language == "en" else f"{amount}{_NBSP}{sign}"

    return make
