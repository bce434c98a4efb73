"""Seamless's languages and its vocabulary.

The vocabulary has one token for each language that it writes; a row that begins with it is in that language.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sprachbund.errors import SprachbundError
from sprachbund.models.hub import is_markup
from sprachbund.models.language_codes import Languages
from sprachbund.models.translation.tokens import trimmed

_PUBLISHED = (
    "afr amh arb ary arz asm ast azj bel ben bos bul cat ceb ces ckb cmn cmn_Hant cym dan deu ell eng est eus fin "
    "fra fuv gaz gle glg guj heb hin hrv hun hye ibo ind isl ita jav jpn kam kan kat kaz kea khk khm kir kor lao "
    "lit ltz lug luo lvs mai mal mar mkd mlt mni mya nld nno nob npi nya oci ory pan pbt pes pol por ron rus slk "
    "slv sna snd som spa srp swe swh tam tel tgk tgl tha tur ukr urd uzn vie xho yor yue zlm zul"
)
SPOKEN = tuple(_PUBLISHED.split())
"""Codes of the speech that the published checkpoints were trained on (arXiv 2308.11596 and 2312.05187); their
files tell only what they write."""

_LANGUAGE = re.compile(r"__(\w+)__")


class SeamlessTokens:
    """Text to tokens and back, and the special tokens.

    Args:
        tokenizer: tokenizer of transformers, as its `SeamlessM4TTokenizer` reads it.
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
        marks = [number for number, token in tokenizer.added_tokens_decoder.items() if is_markup(token)]
        special = {*tokenizer.all_special_ids, *marks}
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

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Character ranges of the tokens of a text in it, without leading white space."""
        return trimmed(self._backend.encode(text, add_special_tokens=False).offsets, text)

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
