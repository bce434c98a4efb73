"""Division of a text into sentences, and into phrases, which a line of a subtitle ends with.

Articles, prepositions, conjunctions and possessives belong to the next word, in English, German, French, Spanish,
Italian and Russian. Other languages have none here, and their lines end at any word.
"""

import re

from sprachbund.text.languages import primary

_END = re.compile(r"[.!?…。\uff01\uff1f।؟][\"'”“’‘»«)\]」』\uff09]*$")


def ends_sentence(text: str) -> bool:
    """Whether a text ends where a sentence does."""
    return _END.search(text.rstrip()) is not None


def split_sentences(text: str, language: str) -> list[str]:
    """The sentences of a text, without white space around them; the whole where nothing divides it.

    Args:
        text: text of any length.
        language: as a BCP-47 tag; it decides what is an abbreviation.
    """
    from sentencex import segment

    sentences = [sentence.strip() for sentence in segment(primary(language), text)]
    return [sentence for sentence in sentences if sentence]


_CLINGING = {
    "en": "a an the this that these those my your his her its our their of to in on at by for from with without "
    "into onto over under about after before between through during against and or but nor so if because "
    "as than when while where who which whose not no very is are was were be been has have had will would "
    "can could shall should must may might",
    "de": "der die das den dem des ein eine einen einem einer eines kein keine mein meine dein sein seine ihr "
    "ihre unser unsere in im ins an am auf aus bei beim von vom zu zum zur mit nach vor für über unter "
    "durch gegen ohne um zwischen und oder aber denn sondern weil wenn dass ob als wie wo der nicht sehr",
    "fr": "le la les un une des du de au aux ce cet cette ces mon ma mes ton ta tes son sa ses notre nos votre "
    "vos leur leurs à en dans sur sous par pour avec sans chez vers entre contre depuis pendant et ou "
    "mais ni car que qui si quand comme ne très",
    "es": "el la los las un una unos unas de del a al en con sin por para sobre bajo entre hacia hasta desde "
    "contra y e o u pero ni que si cuando como mi mis tu tus su sus nuestro nuestra este esta estos estas "
    "ese esa no muy",
    "it": "il lo la i gli le un uno una di del dello della dei degli delle a al allo alla ai agli alle da dal "
    "dalla in nel nella nei con su sul sulla per tra fra senza e ed o ma né che se quando come mio mia "
    "tuo tua suo sua non molto",
    "ru": "в во на за под над перед при про о об от до из с со к ко у по для без через между и а но или что "
    "чтобы если когда как где не ни мой моя твой его её их этот эта это",
}
PHRASE_WORDS = {language: frozenset(words.split()) for language, words in _CLINGING.items()}
"""Language to words; `serving/page/phrases.js` has the same."""


def belongs_to_next(word: str, language: str) -> bool:
    """Whether a line should not end with a word.

    Args:
        word: as it is written; one with a mark behind it ends a phrase.
        language: BCP-47 tag.
    """
    return word.lower() in PHRASE_WORDS.get(primary(language), ())
