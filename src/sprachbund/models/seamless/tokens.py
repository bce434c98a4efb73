"""Seamless's languages and its vocabulary.

The vocabulary has one token for each language that it writes; a row that begins with it is in that language.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sprachbund.errors import SprachbundError
from sprachbund.text.languages import described

# Languages: three-letter codes of a checkpoint (some with a script) to BCP-47 tags and back.
#
# Seamless writes `fra`, `arb`, `cmn_Hant`; this project writes `fr`, `ar`, `zh-Hant`. Two codes may fall
# together (`aka` and `twi` are both `ak` to CLDR): each then keeps its code as its tag, and the shared tag
# is refused by name.

_PUBLISHED = (
    "afr amh arb ary arz asm ast azj bel ben bos bul cat ceb ces ckb cmn cmn_Hant cym dan deu ell eng est eus fin "
    "fra fuv gaz gle glg guj heb hin hrv hun hye ibo ind isl ita jav jpn kam kan kat kaz kea khk khm kir kor lao "
    "lit ltz lug luo lvs mai mal mar mkd mlt mni mya nld nno nob npi nya oci ory pan pbt pes pol por ron rus slk "
    "slv sna snd som spa srp swe swh tam tel tgk tgl tha tur ukr urd uzn vie xho yor yue zlm zul"
)
SPOKEN = tuple(_PUBLISHED.split())
"""Codes of the speech that the published checkpoints were trained on (arXiv 2308.11596 and 2312.05187); their
files tell only what they write."""

_MACRO = {"pbt": "ps", "zlm": "ms"}  # what CLDR leaves apart: Southern Pashto, Malay as it is spoken


def to_bcp47(code: str) -> str:
    """The BCP-47 tag of a Seamless or NLLB code: "fr" for "fra", "zh-Hant" for "cmn_Hant".

    Raises:
        SprachbundError: it is no language code.
    """
    import langcodes

    tag = code.replace("_", "-")
    try:
        return _MACRO.get(tag) or langcodes.standardize_tag(tag, macro=True)
    except ValueError:
        raise SprachbundError(f"{code!r} is not a language code such as 'fra' or 'cmn_Hant'") from None


class Languages:
    """Codes and tags of one checkpoint, one to one.

    Args:
        codes: as the checkpoint writes them; their order is kept.

    Attributes:
        tags: BCP-47 tags, in the order of the codes.
        ambiguous: a tag that several codes share, to those codes written as tags.
    """

    def __init__(self, codes: Iterable[str]) -> None:
        sharing: dict[str, list[str]] = defaultdict(list)
        for code in codes:
            sharing[to_bcp47(code)].append(code)
        self.ambiguous = {tag: [_as_tag(c) for c in same] for tag, same in sharing.items() if len(same) > 1}
        self._tags = {c: _as_tag(c) if len(same) > 1 else tag for tag, same in sharing.items() for c in same}
        self._codes = {tag: code for code, tag in self._tags.items()}

    @property
    def tags(self) -> tuple[str, ...]:
        """Every BCP-47 tag."""
        return tuple(self._codes)

    @property
    def codes(self) -> tuple[str, ...]:
        """Every code, in its order."""
        return tuple(self._tags)

    def tag(self, code: str) -> str:
        """The tag of a code of this checkpoint. Raises SprachbundError for another."""
        if code not in self._tags:
            raise SprachbundError(f"{code!r} is not a language of this model; it has {', '.join(self._tags)}")
        return self._tags[code]

    def code(self, tag: str) -> str:
        """The code of a tag. Raises SprachbundError for one that is unknown, or shared by several codes."""
        if tag in self.ambiguous:
            raise SprachbundError(
                f"{tag!r} may be {' or '.join(self.ambiguous[tag])} in this model; name one of them"
            )
        if tag not in self._codes:
            raise SprachbundError(f"this model does not write {tag!r}; it writes {described(self._codes)}")
        return self._codes[tag]


def _as_tag(code: str) -> str:
    return code.replace("_", "-")


_LANGUAGE = re.compile(r"__(\w+)__")


class SeamlessTokens:
    """Text to tokens and back, and the special tokens.

    Args:
        tokenizer: of transformers, as its `SeamlessM4TTokenizer` reads it.
        codes: Seamless's code to language token; None takes every token that is named like one.
        vocabulary_size: V.

    Attributes:
        end: </s>, which also starts a row.
        languages: codes and BCP-47 tags of what is written.
        not_text: every token that is not text.

    Raises:
        SprachbundError: the tokenizer belongs to another checkpoint, or has no language tokens.
    """

    def __init__(self, tokenizer: Any, codes: Mapping[str, int] | None, vocabulary_size: int) -> None:
        self.tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self.vocabulary_size = vocabulary_size
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        named = {m[1]: i for name, i in vocabulary.items() if (m := _LANGUAGE.fullmatch(name))}
        self._codes = (
            dict(codes) if codes is not None else dict(sorted(named.items(), key=lambda pair: pair[1]))
        )
        _check(self._codes, named, vocabulary, vocabulary_size)
        self.languages = Languages(self._codes)
        self.end = int(tokenizer.eos_token_id)
        special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        self.not_text = frozenset(special) | frozenset(named.values())

    def language_token(self, tag: str) -> int:
        """Token of a BCP-47 tag. Raises SprachbundError for one not written here, or ambiguous."""
        return self._codes[self.languages.code(tag)]

    def text_to_tokens(self, text: str) -> list[int]:
        """Tokens of ordinary text.

        Raises:
            SprachbundError: the text spells out a special token, which would steer the model.
        """
        tokens: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        steering = self.not_text.intersection(tokens) - {self.tokenizer.unk_token_id}
        if steering:
            name = self.tokenizer.convert_ids_to_tokens(min(steering))
            raise SprachbundError(f"the text contains the special token {name}; take it out")
        return tokens

    def tokens_to_text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        text: str = self._backend.decode([t for t in tokens if t not in self.not_text])
        return text


def _check(
    codes: Mapping[str, int], named: Mapping[str, int], vocabulary: Mapping[str, int], vocabulary_size: int
) -> None:
    largest = max(vocabulary.values(), default=-1)
    if largest >= vocabulary_size:
        raise SprachbundError(
            f"the tokenizer numbers its tokens up to {largest} but the model has {vocabulary_size}; "
            "the tokenizer belongs to another checkpoint"
        )
    if not codes:
        raise SprachbundError(
            "the tokenizer has no language tokens such as __eng__; it is not Seamless's, restore the file"
        )
    wrong = [code for code, token in codes.items() if named.get(code) != token]
    if wrong:
        raise SprachbundError(
            f"generation_config.json and the tokenizer disagree on the token of {wrong[0]!r}; "
            "take both from the same checkpoint"
        )
