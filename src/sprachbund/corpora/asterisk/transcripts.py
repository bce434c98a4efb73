"""Cleans the transcripts of the recorded prompts by written rules, and counts what each rule did.

A rule is a small function of (language, name, text) that returns the mended text, or None to drop the prompt.
The order of ``RULES`` is the order in which they are applied. Convention of the result, as everywhere in this
project: words as spoken, numbers in words, apostrophes and hyphens inside words only, lexical case, single
spaces.
"""

from __future__ import annotations

import calendar
import gzip
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Word tables of the rules, written by hand.

_FOLDER = Path(__file__).parent


def _lines(name: str) -> list[str]:
    return (_FOLDER / name).read_text("utf-8").split()


def _without_accents(word: str) -> str:
    letters = unicodedata.normalize("NFD", word.lower())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


# The accented words that occur, by what is left of them when the accents are lost.
SPANISH_ACCENTS = {_without_accents(word): word for word in _lines("spanish_accented.txt")}
SPANISH_ACCENT_PHRASES: tuple[tuple[str, str], ...] = (
    (
        r"\besta(?= (?:en|usted|a punto|configurado|ocupada|disponible|usando|libre|terriblemente|fuera)\b)",
        "está",
    ),
    (r"\b(a|en) que carpeta", r"\1 qué carpeta"),
    (r"\bno se quien\b", "no sé quién"),
    (r"\batravez del\b", "a través del"),
)

ITALIAN_LOST_LETTERS: tuple[tuple[str, str], ...] = (
    (r"\bsar\?", "sarà"),
    (r"\bpu\?", "può"),
    (r"\bcos\?", "così"),
    (r"\bpi\?", "più"),
    (r"(?<=\w) \?(?= \w)", " è"),
    (r"(?<!\w)[eE]'(?= )", "è"),
)

# Typing mistakes: what is written is not a word (or not this word), what is heard is.
SPELLING: dict[str, tuple[tuple[str, str], ...]] = {
    "en": (
        (r"\bumute\b", "unmute"),
        (r"\brepresenatives\b", "representatives"),
        (r"\bun-indentified\b", "unidentified"),
        (r"\bwitheld\b", "withheld"),
        (r"\bfourtieth\b", "fortieth"),
        (r"\bexclaimation\b", "exclamation"),
        (r"\bthru\b", "through"),
        (r"\bmail box\b", "mailbox"),
        (r"\bxray\b", "x-ray"),
    ),
    "es": (
        (r"\bcontrasenia\b", "contraseña"),
        (r"\bdemonstracion\b", "demostración"),
        (r"\bingese\b", "ingrese"),
        (r"\bnimbre\b|\bnumbre\b", "nombre"),
        (r"\btrés\b", "tres"),
        (r"\bmudo mudo\b", "modo mudo"),
        (r"\bó\b", "o"),
        (r"\bdefeto\b", "defecto"),
        (r"\bentidade\b", "entidades"),
        (r"\ban adelante\b", "en adelante"),
        (r"\bintrodusca\b", "introduzca"),
        (r"\bparacambiar\b", "para cambiar"),
        (r"\bmesaje\b", "mensaje"),
        (r"\bre-enviado\b", "reenviado"),
        (r"\bcient\b", "cien"),
        (r"(para aceptar la llamada) \1", r"\1"),
        (r"\bcuatro u seis\b", "cuatro o seis"),
    ),
    "fr": (
        (r"\bprésentemnet\b|\bpresentement\b", "présentement"),
        (r"(?<=\bveuillez )(\w+)ez\b", r"\1er"),
        (r"(?<!veuillez )(?<!d')\bappuyer(?= sur| ?$)", "appuyez"),
        (r"\bétez\b|\bétés\b", "été"),
        (r"\bvérr?ouill", "verrouill"),
        (r"\bverouill", "verrouill"),
        (r"\bd[ée]v[ée]rouill", "déverrouill"),
        (r"\barrivé du\b", "arrivée du"),
        (r"\bce tte\b", "cette"),
        (r"\bpremieres\b", "premières"),
        (r"\bj'essai\b", "j'essaie"),
        (r"\baurevoir\b", "au revoir"),
        (r"\bappellant\b", "appelant"),
        (r"\breessayer\b", "réessayer"),
        (r"\ba nouveau\b", "à nouveau"),
        (r"\betait\b", "était"),
        (r"\boccupes\b", "occupés"),
        (r"\bnous somme desolé\b", "nous sommes désolés"),
        (r"\bdesole\b", "désolé"),
        (r"\bproblemes\b", "problèmes"),
        (r"\bsimultane a ete\b", "simultané a été"),
        (r"\babregée\b", "abrégée"),
        (r"\bavez accédez\b", "avez accédé"),
        (r"\bnumero\b", "numéro"),
        (r"\ba l'(?=extension)", "à l'"),
        (r"\becouter\b", "écouter"),
        (r"\br[ée]-enregistrer\b", "réenregistrer"),
        (r"\benleve\b", "enlevé"),
        (r"\betre rappler\b", "être rappelé"),
        (r"\boptions avancés\b", "options avancées"),
        (r"\bj'établi\b", "j'établis"),
        (r"\brépétér\b", "répéter"),
        (r"\bacceuil\b", "accueil"),
        (r"\bboite\b", "boîte"),
        (r"\bstatus\b", "statut"),
        (r"\b(mots?) de passes\b", r"\1 de passe"),
        (r"\bn'etes\b", "n'êtes"),
        (r"\bvous etes\b", "vous êtes"),
        (r"\ba partir\b", "à partir"),
        (r"\bfelicitation\b", "félicitations"),
        (r"\bpouvez (utilis|appuy)ez\b", r"pouvez \1er"),
        (r"\bconnection\b", "connexion"),
        (r"\bvous avez entrer\b", "vous avez entré"),
        (r"\btelephon(?=er?\b)", "téléphon"),
        (r"\bmise a jour\b", "mise à jour"),
        (r"\b(votre|et) \1\b", r"\1"),
        (r"\bpous accepter\b", "pour accepter"),
        (r"\bpour dirigez\b", "pour diriger"),
        (r"\bdémontration\b", "démonstration"),
        (r"\bdes information\b", "des informations"),
        (r"\bconférence ne peut être joint\b", "conférence ne peut être jointe"),
        (r"\btel qu'entendue\b", "telle qu'entendue"),
        (r"\bs'il-vous-plaît\b", "s'il vous plaît"),
        (r"\barobas\b", "arobase"),
        (r"\bseixième\b", "seizième"),
    ),
    "it": ((r"\bperpiacere\b", "per piacere"), (r"\bun altra\b", "un'altra")),
    "ru": (
        (r"\b([чЧ])то бы\b", r"\1тобы"),
        (r"\bчтобы бы\b", "чтобы"),
        (r"\bоктрября\b", "октября"),
        (r"\bзавршить\b", "завершить"),
        (r"\bдемонтрационн", "демонстрационн"),
        (r"\bувеличиения\b", "увеличения"),
        (r"\bза тем\b", "затем"),
        (r"\bпо-этому\b", "поэтому"),
        (r"\bвзёздочка\b", "звёздочка"),
        (r"\bрешетк", "решётк"),
        (r"\bзвездочк", "звёздочк"),
        (r"\bеще\b", "ещё"),
        (r"\b(за|во)шел\b", r"\1шёл"),
        (r"\bзайдете\b", "зайдёте"),
        (r"\bначнется\b", "начнётся"),
        (r"\b(удал|отмен|смен|неопредел|неразреш)ен\b", r"\1ён"),
        (r"\bсвое\b", "своё"),
        (r"\bв нее\b", "в неё"),
        (r"\bвведенные\b", "введённые"),
        (r"\bчерн(?=ого|ый)", "чёрн"),
        (r"\bчетвертый\b", "четвёртый"),
    ),
}

# The key of the transcript is not the name of the recording: (language, key, text) -> recording.
WRONG_KEYS: dict[tuple[str, str, str], str] = {
    ("es", "digits/0", "diez"): "digits/10",
    ("es", "digits/21-and", "veinti"): "digits/20-and",
    ("es", "confbridge-lock-out-0", "...para bloquear o desbloquear la conferencia."): "confbridge-lock-out",
    (
        "fr",
        "confbridge-lock-out-0",
        "... pour vérouiller ou déverrouiller la conférence.",
    ): "confbridge-lock-out",
    ("fr", "dollars", "dollars"): "digits/dollars",
}
# The transcript belongs to another word than the one its name and the others of its series say.
WRONG_TEXTS: dict[tuple[str, str], str] = {
    ("fr", "digits/h-80"): "quatre-vingtième",
    ("it", "digits/hundred"): "cento",
    ("it", "digits/thousands"): "mila",
    ("it", "digits/ore-1900"): "millenovecento",
    ("it", "digits/ore-2000"): "duemila",
}
# Recordings whose words nobody can know from the transcript, or whose transcript is no translation.
UNUSABLE: frozenset[tuple[str, str]] = frozenset(
    {
        ("fr", "demo-moreinfo"),
        ("fr", "spy-iax2"),
        ("fr", "priv-callee-options"),
        ("fr", "screen-callee-options"),
        ("it", "is"),
        ("it", "vm-then-pound"),
        ("it", "confbridge-begin-leader_presidente"),
        ("ru", "vm-review-nonurgent"),
        ("ru", "digits/oh"),
    }
)
NO_SPEECH: tuple[str, ...] = (
    "beep",
    "beeperr",
    "ascending-2tone",
    "descending-2tone",
    "confbridge-join",
    "confbridge-leave",
    "tt-monkeys",
    "silence/",
)

# Words that keep a capital inside a sentence; everything else is written small.
PROPER = {word.lower(): word for word in _lines("proper_names.txt")}
_ENGLISH = ("I", "I'm", "I'd", "I'll", *calendar.day_name, *calendar.month_name[1:])
ENGLISH_PROPER = {word.lower(): word for word in _ENGLISH}
SIGNS: dict[str, dict[str, str]] = {
    "*": {"en": "star", "es": "asterisco", "fr": "étoile", "it": "asterisco", "ru": "звёздочка"},
    "#": {"en": "pound", "es": "tecla de número", "fr": "dièse", "it": "cancelletto", "ru": "решётка"},
}


MAX_WRITTEN_NUMBER = 99
Rule = Callable[[str, str, str], str | None]
"""(language as a BCP-47 tag, name of the recording, text so far) to the mended text; None drops the recording."""


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """The transcript of one recording in the documentation, before and after cleaning."""

    name: str
    language: str
    raw_text: str
    text: str


def read_lines(path: Path) -> list[tuple[str, str]]:
    """Key and text of every line of a transcript file (plain or gzip) but comments."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    pairs: list[tuple[str, str]] = []
    for line in data.decode("utf-8-sig").splitlines():
        key, colon, text = line.partition(":")
        if colon and not line.startswith(";"):
            pairs.append((key.strip(), text.strip()))
    return pairs


def _drop_no_speech(language: str, name: str, text: str) -> str | None:
    """Tones, silence, screams: dropped by name, or when the text is nothing but one remark in brackets."""
    if name in NO_SPEECH or name.startswith("silence/"):
        return None
    return None if re.fullmatch(r"\[[^]]*\]|\([^)]*\)|<[^>]*>", text) else text


def _drop_empty(language: str, name: str, text: str) -> str | None:
    """No transcript at all."""
    return text or None


def _drop_unusable(language: str, name: str, text: str) -> str | None:
    """Listed by hand: text in another language, no translation, or nobody can know the words."""
    return None if (language, name) in UNUSABLE else text


def _replace_wrong_text(language: str, name: str, text: str) -> str | None:
    """Listed by hand: the text of a neighbouring recording stands there."""
    return WRONG_TEXTS.get((language, name), text)


def _cut_names(language: str, name: str, text: str) -> str | None:
    """The prompt's own name at the start is removed; another prompt's ``name:`` inside ends the text."""
    text = re.sub(rf"^{re.escape(name)}:\s*", "", text)
    return re.split(r"\s*(?:vm|conf|confbridge)-[a-z-]+:", text)[0].strip()


def _drop_doubtful(language: str, name: str, text: str) -> str | None:
    """Words in square brackets or alternatives with a slash may or may not be spoken; so may addresses."""
    if re.search(r"\[[^]]*\w{2}[^]]*\]|\w ?/ ?\w|www\.", text):
        return None
    return text


def _remove_notes(language: str, name: str, text: str) -> str | None:
    """Remarks in brackets: ``(note: does not say "2")``, ``[@]``."""
    return re.sub(r"\s+", " ", re.sub(r"\([^)]*\)|\[[^]]*\]|<[^>]*>", " ", text)).strip() or None


def _restore_letters(language: str, name: str, text: str) -> str | None:
    """Italian letters lost in a conversion (``pu?``, ``E'``) and Latin look-alikes inside Russian words."""
    if language == "it":
        for pattern, repair in ITALIAN_LOST_LETTERS:
            text = re.sub(pattern, repair, text)
    if language == "ru":
        swap = str.maketrans("aceopxyACEOPX", "асеорхуАСЕОРХ")
        text = re.sub(r"\w*[а-яА-Я]\w*", lambda word: word[0].translate(swap), text)
    return text


def _unify_apostrophes(language: str, name: str, text: str) -> str | None:
    """One apostrophe for all."""
    return re.sub(r"(?<=\w)[’`](?=\w)", "'", text)


def _mend_spelling(language: str, name: str, text: str) -> str | None:
    """Typing mistakes, by a table per language."""
    for pattern, repair in SPELLING[language]:
        text = re.sub(pattern, repair, text, flags=re.IGNORECASE)
    return text


def _restore_accents(language: str, name: str, text: str) -> str | None:
    """Spanish accents, by a table of the words that occur."""
    if language != "es":
        return text
    for pattern, repair in SPANISH_ACCENT_PHRASES:
        text = re.sub(pattern, repair, text, flags=re.IGNORECASE)
    table = SPANISH_ACCENTS
    return re.sub(r"\w+", lambda word: table.get(word[0].lower(), word[0]), text)


def _speak_signs(language: str, name: str, text: str) -> str | None:
    """The keys ``*`` and ``#`` in words."""
    for sign, words in SIGNS.items():
        text = text.replace(sign, f" {words[language]} ")
    return text


def _speak_numbers(language: str, name: str, text: str) -> str | None:
    """Numbers up to 99 in words; prompts with others are dropped: whose reading is not known."""
    from num2words import num2words

    numbers = re.findall(r"\d+", text)
    if any(int(number) > MAX_WRITTEN_NUMBER for number in numbers) or re.search(
        r"\d[.,]\d|[^\W\d]\d|\d[^\W\d]", text
    ):
        return None
    return re.sub(r"\d+", lambda number: f" {num2words(int(number[0]), lang=language)} ", text)


def _strip_punctuation(language: str, name: str, text: str) -> str | None:
    """Only letters, and apostrophes and hyphens between letters, stay."""
    text = re.sub(r"(?<=[A-Z])\.(?=[A-Z]\.)", " ", text)
    text = re.sub(r"[^\w'\-]|_|(?<!\w)['\-]+|['\-]+(?!\w)", " ", text)
    return re.sub(r"\s+", " ", text).strip() or None


def _lexical_case(language: str, name: str, text: str) -> str | None:
    """Small letters, except proper names and, in English, ``I``, weekdays and months."""
    table = PROPER | (ENGLISH_PROPER if language == "en" else {})
    words = text.split()
    if all(len(word) == 1 for word in words):  # spelled letters: "M I S D N"
        return text.lower()
    return " ".join(table.get(word.lower(), word.lower()) for word in words)


RULES: tuple[Rule, ...] = (
    _drop_no_speech,
    _drop_empty,
    _drop_unusable,
    _replace_wrong_text,
    _cut_names,
    _drop_doubtful,
    _remove_notes,
    _restore_letters,
    _unify_apostrophes,
    _mend_spelling,
    _restore_accents,
    _speak_signs,
    _speak_numbers,
    _strip_punctuation,
    _lexical_case,
)


def clean(language: str, name: str, raw_text: str, counts: Counter[str] | None = None) -> str | None:
    """The cleaned text or None when a rule drops it; ``counts`` gains one for each rule that acted.

    Args:
        language: BCP-47 tag.
        name: name of the recording.
        raw_text: published transcript.
        counts: gains one for each rule that acted.
    """
    text = raw_text
    for rule in RULES:
        mended = rule(language, name, text)
        if mended != text and counts is not None:
            counts[rule.__name__.removeprefix("_")] += 1
        if mended is None:
            return None
        text = mended
    return text


def read_transcripts(path: Path, language: str) -> tuple[dict[str, Transcript], Counter[str]]:
    """All usable transcripts of a language by name (small letters), and how often each rule acted."""
    counts: Counter[str] = Counter()
    transcripts: dict[str, Transcript] = {}
    for key, raw_text in read_lines(path):
        counts["lines"] += 1
        name = WRONG_KEYS.get((language, key, raw_text), key).lower()
        counts["move_wrong_key"] += name != key.lower()
        text = clean(language, name, raw_text, counts)
        if text is not None:
            transcripts[name] = Transcript(name=name, language=language, raw_text=raw_text, text=text)
    counts["kept"] = len(transcripts)
    return transcripts, counts
