"""Hand-written word tables for the faults of the transcripts; ``transcripts`` applies and counts them."""

from __future__ import annotations

import calendar
import unicodedata
from pathlib import Path

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
