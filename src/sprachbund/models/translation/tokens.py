"""Vocabularies of text-to-text checkpoints: texts to tokens and back, and the languages with their tokens.

A source is the token of a language, the pieces of the text and the end. It is the language of the text, but with Marian
the one wanted, and none where there is only one. Pieces come from transformers' tokenizer of a
checkpoint: from SentencePiece, or from the library tokenizers. What looks like a special token in a text is text, but
to mBART, whose pieces include them: there it is an error.
"""

import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

from sprachbund.errors import SprachbundError
from sprachbund.models.hub import one_line, quiet_transformers
from sprachbund.models.language_codes import Languages, to_bcp47
from sprachbund.models.translation.checkpoints import library
from sprachbund.text.languages import MIXED, language_name
from sprachbund.util.files import read_object

Offsets = list[tuple[int, int]]
"""Range (begin, end) of characters that each token stands for."""


class Pieces(Protocol):
    """The pieces of a vocabulary; special tokens are no pieces."""

    def tokens(self, text: str) -> list[int]:
        """Tokens of a text."""
        ...

    def offsets(self, text: str) -> Offsets:
        """Character ranges of the tokens of a text in it, without leading white space."""
        ...

    def text(self, tokens: Sequence[int]) -> str:
        """Text of tokens."""
        ...


class BackendPieces:
    """Pieces by the library tokenizers.

    Args:
        backend: `tokenizers.Tokenizer`; from now on it takes special tokens in a text for text.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        backend.encode_special_tokens = True

    def tokens(self, text: str) -> list[int]:  # noqa: D102 - see `Pieces`
        tokens: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return tokens

    def offsets(self, text: str) -> Offsets:  # noqa: D102 - see `Pieces`
        return trimmed(self._backend.encode(text, add_special_tokens=False).offsets, text)

    def text(self, tokens: Sequence[int]) -> str:  # noqa: D102 - see `Pieces`
        text: str = self._backend.decode(list(tokens))
        return text


class SentencePieces:
    """Pieces by SentencePiece, numbered by a table of their own.

    Args:
        processor: `sentencepiece.SentencePieceProcessor`.
        numbers: numbers of the pieces.
        unknown: token of pieces without a number.
    """

    def __init__(self, processor: Any, numbers: Mapping[str, int], unknown: int) -> None:
        self._processor, self._numbers, self._unknown = processor, numbers, unknown
        self._names = {number: piece for piece, number in numbers.items()}

    def tokens(self, text: str) -> list[int]:  # noqa: D102 - see `Pieces`
        return [
            self._numbers.get(piece, self._unknown) for piece in self._processor.encode(text, out_type=str)
        ]

    def offsets(self, text: str) -> Offsets:  # noqa: D102 - see `Pieces`
        # Pieces cut up the normalised text, of which SentencePiece knows where each character is from.
        pieces = self._processor.encode(text, out_type=str)
        normalised, sources = self._processor.normalize(text, with_offsets=True)
        if "".join(pieces) != normalised:
            raise SprachbundError(
                "the SentencePiece model writes bytes, whose position in a text is not known; leave out times of words"
            )
        ends = accumulate(map(len, pieces), initial=0)
        # One character of the text may become several, which then are all of it.
        return trimmed(
            [
                (sources[begin], next((n for n in sources[end:] if n > sources[begin]), sources[-1]))
                for begin, end in pairwise(ends)
            ],
            text,
        )

    def text(self, tokens: Sequence[int]) -> str:  # noqa: D102 - see `Pieces`
        text: str = self._processor.decode([self._names[token] for token in tokens if token in self._names])
        return text.strip()


def trimmed(offsets: Sequence[tuple[int, int]], text: str) -> Offsets:
    """The same without the white space that pieces begin with."""
    trimmed = []
    for begin, end in offsets:
        own = text[begin:end]
        trimmed.append((begin + len(own) - len(own.lstrip()), end))
    return trimmed


Marked = Literal["source", "target"]
"""Whose language's token a source begins with."""


class TranslationTokens:
    """The vocabulary of one checkpoint.

    Args:
        tokenizer: tokenizer of transformers, which a saved model is written with.
        pieces: pieces of sources.
        codes: the checkpoint's language code to its token.
        languages: the same codes, with their BCP-47 tags.
        special: tokens that are no text; those of languages are added.
        vocabulary_size: V.
        lead: tokens of a source before that of the language.
        written: pieces of what is written; those of sources if None.
        marked: side whose language's token a source begins with; None for no token.
        sources: BCP-47 tags read; those of `languages` if None, and () where the checkpoint does not say.
        targets: BCP-47 tags written; likewise.

    Attributes:
        language_index: index of the language among the tokens of a source.
        end: ends a source and a row.
        padding: fills up shorter sources; nothing reads it.
        not_text: every token that is not text.

    Raises:
        SprachbundError: the tokenizer belongs to another checkpoint, or has no language tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        pieces: Pieces,
        codes: Mapping[str, int],
        languages: Languages,
        *,
        special: Sequence[int],
        vocabulary_size: int,
        lead: Sequence[int] = (),
        written: Pieces | None = None,
        marked: Marked | None = "source",
        sources: tuple[str, ...] | None = None,
        targets: tuple[str, ...] | None = None,
    ) -> None:
        self.tokenizer, self.pieces, self.languages = tokenizer, pieces, languages
        self.written, self.marked, self._lead = written or pieces, marked, [*lead]
        self.language_index = len(self._lead)
        self.sources = languages.tags if sources is None else sources
        self.targets = languages.tags if targets is None else targets
        self._codes = codes
        self.end, self.padding = int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)
        largest = max([*tokenizer.get_vocab().values(), *codes.values()])
        if largest >= vocabulary_size:
            raise SprachbundError(
                f"the tokenizer numbers its tokens up to {largest} but the model has {vocabulary_size}; "
                "the tokenizer belongs to another checkpoint"
            )
        # A table of weights may have more rows than there are tokens.
        beyond = range(largest + 1, vocabulary_size)
        self.not_text = frozenset([*special, *codes.values(), *beyond])

    def language_token(self, tag: str) -> int:
        """Token of a BCP-47 tag. Raises SprachbundError for a language without, or an ambiguous tag."""
        return self._codes[self.languages.code(tag)]

    def source(self, text: str) -> list[int]:
        """Tokens of a source; the last token stands for the language, which is not known here.

        Raises:
            SprachbundError: a special token that the pieces take for one in a text too; it would steer the model.
        """
        tokens = self.pieces.tokens(text)
        if steering := self.not_text.intersection(tokens) - {self.tokenizer.unk_token_id}:
            name = self.tokenizer.convert_ids_to_tokens(min(steering))
            raise SprachbundError(f"the text contains the special token {name}; take it out")
        return [*self._lead, *([self.end] if self.marked else []), *tokens, self.end]

    def source_offsets(self, text: str) -> Offsets:
        """Character ranges of the tokens of a source in the text; (0, 0) for tokens that stand for none of it."""
        before = [(0, 0)] * (self.language_index + bool(self.marked))
        return [*before, *self.pieces.offsets(text), (0, 0)]

    def tokens_to_text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        return self.written.text([token for token in tokens if token not in self.not_text])


# M2M-100 and NLLB.

_TOKENIZER_CONFIG = "tokenizer_config.json"
_NLLB_CODE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")


def read_tokens(directory: Path, kind: str, vocabulary_size: int) -> TranslationTokens:
    """The vocabulary of a directory.

    Args:
        directory: directory in the Hugging Face layout.
        kind: kind of the checkpoint.
        vocabulary_size: V.

    Raises:
        SprachbundError: files that are broken, or of another model.
    """
    path = directory / _TOKENIZER_CONFIG
    if path.is_file() and (own := read_object(path).get("tokenizer_class")) not in (None, *_CLASSES[kind]):
        raise SprachbundError(
            f"{path}: the tokenizer is {own!r}, which marks languages in another way than {_CLASSES[kind][0]}; take a "
            "checkpoint with that one"
        )
    with one_line(path), quiet_transformers():
        return _READERS[kind](directory, vocabulary_size)


def _read_m2m_100(directory: Path, vocabulary_size: int) -> TranslationTokens:
    """M2M-100 numbers its pieces in vocab.json; NLLB, which is of the same type, has no such file."""
    if not (directory / "vocab.json").is_file():
        return _read_nllb(directory, vocabulary_size)
    tokenizer = library().M2M100Tokenizer.from_pretrained(directory, local_files_only=True)
    codes: dict[str, int] = tokenizer.lang_code_to_id
    special = tokenizer.all_special_ids
    pieces = SentencePieces(tokenizer.sp_model, tokenizer.encoder, tokenizer.unk_token_id)
    languages = Languages(codes)
    return TranslationTokens(
        tokenizer, pieces, codes, languages, special=special, vocabulary_size=vocabulary_size
    )


def _read_nllb(directory: Path, vocabulary_size: int) -> TranslationTokens:
    tokenizer = library().NllbTokenizer.from_pretrained(directory, local_files_only=True)
    codes = _named(tokenizer, _NLLB_CODE)
    if not codes:
        raise SprachbundError(
            f"{directory}: the tokenizer has no language tokens such as eng_Latn; it is not NLLB's, restore the file"
        )
    languages = Languages(codes, without_scripts(codes))
    pieces = BackendPieces(tokenizer.backend_tokenizer)
    special = tokenizer.all_special_ids
    return TranslationTokens(
        tokenizer, pieces, codes, languages, special=special, vocabulary_size=vocabulary_size
    )


def _named(tokenizer: Any, pattern: re.Pattern[str]) -> dict[str, int]:
    """Added tokens whose whole name fits, in their order."""
    added: dict[str, int] = tokenizer.get_added_vocab()
    marked = {name: token for name, token in added.items() if pattern.fullmatch(name)}
    return dict(sorted(marked.items(), key=lambda pair: pair[1]))


def without_scripts(codes: Sequence[str] | Mapping[str, int]) -> dict[str, str]:
    """NLLB's codes without a script that goes without saying: one that the language alone has here, or its usual one.

    "deu_Latn" becomes "deu" and "zho_Hans" "zho"; "zho_Hant" stays.
    """
    import langcodes

    scripts = defaultdict(list)
    for code in codes:
        language, _, script = code.partition("_")
        scripts[language].append(script)
    spelled = {}
    for language, own in scripts.items():
        usual = langcodes.Language.get(to_bcp47(language)).maximize().script
        for script in own:
            implied = len(own) == 1 or script == usual
            spelled[f"{language}_{script}"] = language if implied else f"{language}_{script}"
    return {code: spelled[code] for code in codes}


# mBART-50.


def _read_mbart(directory: Path, vocabulary_size: int) -> TranslationTokens:
    tokenizer = library().MBart50Tokenizer.from_pretrained(directory, local_files_only=True)
    codes: dict[str, int] = tokenizer.lang_code_to_id
    languages = Languages(codes, {code: code.partition("_")[0] for code in codes})
    pieces = BackendPieces(tokenizer.backend_tokenizer)
    special = tokenizer.all_special_ids
    return TranslationTokens(
        tokenizer, pieces, codes, languages, special=special, vocabulary_size=vocabulary_size
    )


# Marian, as the Opus-MT project publishes it: one pair, or several targets named by a token such as >>fra<<.

_TARGET = re.compile(r">>(\w+)<<")


def _read_marian(directory: Path, vocabulary_size: int) -> TranslationTokens:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it recommends a package of which it uses nothing here
        tokenizer = library().MarianTokenizer.from_pretrained(directory, local_files_only=True)
    if tokenizer.separate_vocabs:
        raise SprachbundError(
            f"{directory}: source and target have vocabularies of their own (separate_vocabs), which is not built "
            "here; take a checkpoint with one for both"
        )
    vocabulary: dict[str, int] = tokenizer.encoder
    marks = {m[1]: token for name, token in vocabulary.items() if (m := _TARGET.fullmatch(name))}
    codes = {code: token for code, token in marks.items() if _one_language(code)}
    scripted = without_scripts([code for code in codes if _NLLB_CODE.fullmatch(code)])
    languages = Languages(codes, {code: scripted.get(code, code) for code in codes})
    source, target = (_one_language(code) for code in (tokenizer.source_lang, tokenizer.target_lang))
    sources, targets = (pieces_of(spm, vocabulary) for spm in (tokenizer.spm_source, tokenizer.spm_target))
    return TranslationTokens(
        tokenizer,
        sources,
        codes,
        languages,
        special=[*tokenizer.all_special_ids, *marks.values()],
        vocabulary_size=vocabulary_size,
        written=targets,
        marked="target" if codes else None,
        sources=(source,) if source else (),
        targets=languages.tags or ((target,) if target else ()),
    )


def pieces_of(processor: Any, vocabulary: Mapping[str, int]) -> SentencePieces:
    """Pieces numbered by a vocabulary with <unk>."""
    return SentencePieces(processor, vocabulary, vocabulary["<unk>"])


def _one_language(code: object) -> str | None:
    """The BCP-47 tag of a code; None where it is no code, or stands for a group of languages such as "mul" or "gem"."""
    import langcodes

    if not isinstance(code, str) or not langcodes.tag_is_valid(code.replace("_", "-")):
        return None
    is_group = code == MIXED or language_name(code.replace("_", "-")).endswith("languages")
    return None if is_group else to_bcp47(code)


# MADLAD-400, a T5 whose SentencePiece model has a token such as <2fr> for each language, and others for its tasks.

_TASK = re.compile(r"<2(\w+)>")
_SPIECE = "spiece.model"


class SentencePieceTokenizer:
    """A SentencePiece model as a tokenizer, as far as `TranslationTokens` needs one.

    transformers 5.23 rebuilds T5's tokenizer with token 2 for unknown characters, which is the end of MADLAD-400.

    Args:
        path: path of the model.
        padding: its token for padding.
    """

    def __init__(self, path: Path, padding: int) -> None:
        import sentencepiece

        self._model = path.read_bytes()
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)
        self.eos_token_id, self.pad_token_id = int(self.processor.eos_id()), padding
        self.unk_token_id = int(self.processor.unk_id())

    def get_vocab(self) -> dict[str, int]:
        """Names of all pieces, and their tokens."""
        return {self.processor.id_to_piece(i): i for i in range(len(self.processor))}

    def convert_ids_to_tokens(self, token: int) -> str:
        """Name of a token."""
        name: str = self.processor.id_to_piece(token)
        return name

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the model into a directory."""
        (Path(directory) / _SPIECE).write_bytes(self._model)


def _read_t5(directory: Path, vocabulary_size: int) -> TranslationTokens:
    """By tokenizer.json as it stands, or by the SentencePiece model itself."""
    settings = read_object(directory / "config.json")
    tokenizer: Any
    pieces: Pieces
    if (directory / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
        names = {
            key: backend.id_to_token(int(settings[f"{which}_token_id"]))
            for key, which in (("eos_token", "eos"), ("pad_token", "pad"))
        }
        tokenizer = library().PreTrainedTokenizerFast(tokenizer_object=backend, **names, unk_token="<unk>")
        pieces = BackendPieces(tokenizer.backend_tokenizer)
    else:
        tokenizer = SentencePieceTokenizer(directory / _SPIECE, int(settings["pad_token_id"]))
        pieces = SentencePieces(tokenizer.processor, tokenizer.get_vocab(), tokenizer.unk_token_id)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    tasks = {m[1]: token for name, token in vocabulary.items() if (m := _TASK.fullmatch(name))}
    codes = {code: token for code, token in sorted(tasks.items()) if _one_language(code)}
    if not codes:
        raise SprachbundError(
            f"{directory}: the vocabulary has no tokens of languages such as <2fr>; it is not MADLAD-400's, give a "
            "checkpoint such as google/madlad400-3b-mt"
        )
    first = next(iter(codes))
    *lead, mark = pieces.tokens(f"<2{first}>")
    if mark != codes[first]:
        raise SprachbundError(
            f"{directory}: the tokenizer cuts up <2{first}>, which is one token; restore its files"
        )
    controls = [token for name in ("<unk>", "<s>", "<pad>") if (token := vocabulary.get(name)) is not None]
    return TranslationTokens(
        tokenizer,
        pieces,
        codes,
        Languages(codes),
        special=[tokenizer.eos_token_id, tokenizer.pad_token_id, *controls, *tasks.values()],
        vocabulary_size=vocabulary_size,
        lead=lead,
        marked="target",
    )


_READERS: dict[str, Callable[[Path, int], TranslationTokens]] = {
    "m2m_100": _read_m2m_100,
    "mbart": _read_mbart,
    "marian": _read_marian,
    "t5": _read_t5,
}
"""Readers by kind of checkpoint."""
_ANY = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Names under which transformers writes any tokenizer of the library tokenizers."""
_CLASSES = {
    "m2m_100": ("M2M100Tokenizer", "NllbTokenizer", "NllbTokenizerFast", *_ANY),
    "mbart": ("MBart50Tokenizer", "MBart50TokenizerFast", *_ANY),
    "marian": ("MarianTokenizer",),
    "t5": ("T5Tokenizer", "T5TokenizerFast", *_ANY),
}
"""Tokenizers by kind of checkpoint, as tokenizer_config.json names them."""
