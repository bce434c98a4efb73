"""Whisper's vocabulary with the special tokens of languages and tasks, and the tasks that a checkpoint was trained on.

Special tokens are looked up by name: their numbers differ between checkpoints, and fine-tuning adds more.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer

from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from sprachbund.models.hub import CONFIG_KEY
from sprachbund.models.whisper.config import FIRST_MULTILINGUAL_VOCABULARY, WhisperConfig

TIMESTAMP_STEP_S = 0.02
"""Seconds from one timestamp token to the next."""

_SPECIAL = re.compile(r"<\|.*\|>")
_LANGUAGE = re.compile(r"<\|([a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*)\|>")
_TIMESTAMP = re.compile(r"<\|\d+\.\d\d\|>")
_SYMBOLS = (
    *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
    *["<<", ">>", "<<<", ">>>", "--", "---", "-(", "-[", "('", '("', "((", "))", "(((", ")))"],
    *["[[", "]]", "{{", "}}", "♪♪", "♪♪♪"],
)
_NOTES = "♩♪♫♬♭♮♯"
# Withdrawn ISO 639 codes that Whisper still uses, and Tagalog, which CLDR and all other checkpoints call Filipino.
_BCP47 = {"iw": "he", "jw": "jv", "in": "id", "ji": "yi", "tl": "fil"}


class WhisperTokens:
    """Text to tokens and back, and the special tokens.

    Attributes:
        end: <|endoftext|>.
        start: <|startoftranscript|>.
        previous: <|startofprev|>, before earlier text; None if there is none.
        transcribe: the task token; None in vocabularies without tasks.
        translate: the task token for translation into English; None if there is none.
        no_timestamps: <|notimestamps|>; None if there is none.
        no_speech: <|nospeech|> or, in older checkpoints, <|nocaptions|>; None if there is none.
        timestamps: the timestamp tokens, <|0.00|> first, one every `TIMESTAMP_STEP_S`; may be empty.
        behind_timestamps: the first token behind them that has a name, such as one that was added; the size of the
            vocabulary if none has.
        not_text: every token that is not text: special ones and timestamps.
        languages: BCP-47 tag to language token, in the order of the tokens.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary_size: int) -> None:
        self._tokenizer = tokenizer
        self.vocabulary_size = vocabulary_size
        self._special, num_named = _special_tokens(tokenizer, vocabulary_size)
        if num_named < tokenizer.get_vocab_size(with_added_tokens=True):
            _check_fits(tokenizer.get_vocab(with_added_tokens=True), vocabulary_size)
        self.end = self._needed("<|endoftext|>")
        self.start = self._needed("<|startoftranscript|>")
        self.previous = self._special.get("<|startofprev|>")
        self.transcribe = self._special.get("<|transcribe|>")
        self.translate = self._special.get("<|translate|>")
        self.no_timestamps = self._special.get("<|notimestamps|>")
        self.no_speech = self._special.get("<|nospeech|>", self._special.get("<|nocaptions|>"))
        self.timestamps, self.behind_timestamps = self._find_timestamps()
        self.not_text = frozenset(self._special.values()) | frozenset(self.timestamps)
        self.languages = _languages(self._special)

    def text_to_tokens(self, text: str) -> list[int]:
        """Tokens of ordinary text.

        Raises:
            SprachbundError: the text spells out a special token, which would steer the model.
        """
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        steering = [name for name, i in self._special.items() if i in tokens]
        if steering:
            raise SprachbundError(f"the text contains the special token {steering[0]}; take it out")
        return tokens

    def tokens_to_text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones and timestamps left out; a leading space is kept."""
        visible = [t for t in tokens if t not in self.not_text]
        text: str = self._tokenizer.decode(visible, skip_special_tokens=True)
        return text

    def openai_suppressed(self) -> dict[str, list[int]]:
        """Tokens that openai-whisper never writes, or never first, as `generation_config.json` lists them.

        They stand for what nobody speaks: symbols that are one token, the first token of musical signs, and hyphens and
        quotes that begin a word (`non_speech_tokens` in its tokenizer.py).
        """
        blank = self.text_to_tokens(" ")
        never = set[int]()
        for symbol in (*_SYMBOLS, *_NOTES):
            for tokens in (self.text_to_tokens(symbol), self.text_to_tokens(f" {symbol}")):
                if len(tokens) == 1 or symbol in _NOTES:
                    never.add(tokens[0])
        for begun in (" -", " '"):
            never.add(self.text_to_tokens(begun)[0])
        # A vocabulary of bytes has no tokens that begin with a space: spaces stay.
        return {
            "suppress_tokens": sorted(never.difference(blank)),
            "begin_suppress_tokens": [*blank, self.end],
        }

    def name_of(self, token: int) -> str:
        """The name of a token: for text, a letter of byte-level BPE for each of its bytes."""
        name: str | None = self._tokenizer.id_to_token(token)
        if name is None:
            raise SprachbundError(f"the tokenizer has no token {token}; restore the file")
        return name

    def to_json(self) -> str:
        """The content of a `tokenizer.json`."""
        text: str = self._tokenizer.to_str()
        return text

    def _needed(self, name: str) -> int:
        if name not in self._special:
            raise SprachbundError(f"the tokenizer has no token {name}; it is not Whisper's, restore the file")
        return self._special[name]

    def _find_timestamps(self) -> tuple[range, int]:
        named = [i for name, i in self._special.items() if _TIMESTAMP.fullmatch(name)]
        if not named and self.no_timestamps is None:
            return range(0), self.vocabulary_size
        first = max(named, default=self.no_timestamps or 0) + 1
        rest = range(first, self.vocabulary_size)
        behind = next((i for i in rest if self._tokenizer.id_to_token(i) is not None), self.vocabulary_size)
        # Older tokenizer files leave timestamps out; they are the last tokens of every published vocabulary.
        return range(min(named), first) if named else range(first, behind), behind


def with_languages(tokens: WhisperTokens, languages: Sequence[str]) -> Tokenizer:
    """The tokenizer of a vocabulary with a token more for each BCP-47 tag, after all others.

    Timestamps that the file leaves out are written into it first: their numbers are taken.

    Raises:
        SprachbundError: a language that is there already, or that cannot be the name of a token.
    """
    for language in languages:
        if language in tokens.languages:
            raise SprachbundError(
                f"the model has a token for {language!r} already; take it out of new_languages"
            )
        if not _LANGUAGE.fullmatch(language_name(language)):
            raise SprachbundError(f"{language!r} is not a BCP-47 tag such as 'gsw' or 'pt-BR'; correct it")
    tokenizer = Tokenizer.from_str(tokens.to_json())
    stamps = [f"<|{TIMESTAMP_STEP_S * i:.2f}|>" for i in range(len(tokens.timestamps))]
    names = [*stamps, *map(language_name, languages)]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def language_name(language: str) -> str:
    """Name of the token of a BCP-47 tag."""
    return f"<|{language}|>"


def _special_tokens(tokenizer: Tokenizer, vocabulary_size: int) -> tuple[dict[str, int], int]:
    """Special tokens by name, and how many tokens have a name at all."""
    special, num_named = dict[str, int](), 0
    for i in range(
        vocabulary_size
    ):  # one by one: a table of all would take 12 MiB that the process never gives back
        if (name := tokenizer.id_to_token(i)) is not None:
            num_named += 1
            if _SPECIAL.fullmatch(name):
                special[name] = i
    return special, num_named


def _check_fits(vocabulary: dict[str, int], vocabulary_size: int) -> None:
    largest = max(vocabulary.values(), default=-1)
    if largest >= vocabulary_size:
        raise SprachbundError(
            f"the tokenizer numbers its tokens up to {largest} but the model has {vocabulary_size}; "
            "the tokenizer belongs to another checkpoint"
        )


def _languages(special: dict[str, int]) -> dict[str, int]:
    codes = sorted((i, match[1]) for name, i in special.items() if (match := _LANGUAGE.fullmatch(name)))
    return {_BCP47.get(code, code): i for i, code in codes}


# The tasks of a checkpoint: its language pairs, and the prompt that asks for one of them.
#
# Whisper's own prompt names the language *spoken* and a task, so it knows transcription and translation
# into English. Checkpoints fine-tuned to translate into many languages name the language *wanted* instead;
# they say so in `config.json`: `"sprachbund": {"target_language_prompt": true, "pairs": [["en", "de"],
# ...]}`. With `"bare_prompt": true` they name nothing else: no task, and no timestamps (arXiv 2508.11189,
# section 2.1).

Pairs = frozenset[tuple[str, str]]
ENGLISH = "en"


@dataclass(frozen=True, kw_only=True)
class WhisperTasks:
    """Pairs (source, target) as BCP-47 tags, and how they are asked for.

    Attributes:
        pairs: (source, target) pairs that the checkpoint knows; (x, x) is transcription.
        target_language_prompt: the prompt holds the tag of the language wanted, not of the one spoken.
        language_tokens: whether the prompt names a language and a task (not in English-only checkpoints).
        bare_prompt: the prompt is the start and the language wanted, and no row has timestamps.
    """

    pairs: Pairs
    target_language_prompt: bool = False
    language_tokens: bool = True
    bare_prompt: bool = False

    @classmethod
    def read(
        cls,
        config: WhisperConfig,
        tokens: WhisperTokens,
        *,
        raw_config: Mapping[str, Any],
        generation: Mapping[str, Any],
    ) -> "WhisperTasks":
        """Read the tasks from the files of a checkpoint.

        A checkpoint with fewer decoder than encoder layers is a distilled one (turbo, Distil-Whisper); those
        were trained on transcription only, though their vocabulary still has the translation token. That
        English Distil-Whisper checkpoints know English only does not show in their files: they keep the
        multilingual vocabulary. List their "pairs" as above to have other languages refused.

        Args:
            config: sizes of the model.
            tokens: its vocabulary.
            raw_config: content of config.json.
            generation: content of generation_config.json.

        Raises:
            SprachbundError: our key of `config.json` is malformed or names a language without a token.
        """
        multilingual = generation.get("is_multilingual")
        if multilingual is None:
            multilingual = config.vocabulary_size >= FIRST_MULTILINGUAL_VOCABULARY
        if not multilingual or not tokens.languages or tokens.transcribe is None:
            return cls(pairs=frozenset({(ENGLISH, ENGLISH)}), language_tokens=False)
        ours = raw_config.get(CONFIG_KEY, {})
        by_target = bool(ours.get("target_language_prompt", False)) if isinstance(ours, Mapping) else False
        if not isinstance(ours, Mapping) or (by_target and "pairs" not in ours):
            raise SprachbundError(f"the key {CONFIG_KEY!r} of config.json needs a list of 'pairs'; add it")
        if "pairs" in ours:
            bare = by_target and bool(ours.get("bare_prompt", False))
            return cls(
                pairs=_listed(ours["pairs"], tokens), target_language_prompt=by_target, bare_prompt=bare
            )
        pairs = {(x, x) for x in tokens.languages}
        if tokens.translate is not None and config.decoder_layers >= config.encoder_layers:
            pairs |= {(x, ENGLISH) for x in tokens.languages}
        return cls(pairs=frozenset(pairs))

    def check(self, target: Target) -> None:
        """Raise SprachbundError unless the pair asked for is known; the message lists what is."""
        into = sorted({t for _, t in self.pairs})
        if target.language not in into:
            raise SprachbundError(
                f"this model does not write {target.language!r}; it writes {', '.join(into)}"
            )
        if target.source is None:
            if self.language_tokens and not self.target_language_prompt:
                raise SprachbundError(
                    "this model needs the language spoken; give it, or detect it from the audio"
                )
            return
        if (target.source, target.language) not in self.pairs:
            known = sorted(t for s, t in self.pairs if s == target.source) or ["nothing"]
            raise SprachbundError(
                f"this model does not know the pair {target.source} to {target.language}; "
                f"from {target.source} it knows {', '.join(known)}"
            )

    def prompt(self, target: Target, tokens: WhisperTokens, max_tokens: int) -> list[int]:
        """Tokens a row starts with; of a long context its end, at most half of `max_tokens`, is shown.

        Args:
            target: language, task and context asked for.
            tokens: the vocabulary.
            max_tokens: most tokens of a row.

        Raises:
            SprachbundError: a pair not known, or a context or timestamps without tokens for them.
        """
        self.check(target)
        prompt = [*_context(target.context, tokens, max_tokens // 2), tokens.start]
        if self.bare_prompt:
            if target.timestamps:
                raise SprachbundError(
                    "this model was trained without timestamps; ask for text without timestamps"
                )
            return [*prompt, tokens.languages[target.language]]
        if self.language_tokens:
            named = target.language if self.target_language_prompt else target.source
            prompt += [tokens.languages[named or target.language], self._task(target, tokens)]
        if target.timestamps and not tokens.timestamps:
            raise SprachbundError("this model has no timestamp tokens; ask for text without timestamps")
        if not target.timestamps and tokens.no_timestamps is not None:
            prompt.append(tokens.no_timestamps)
        return prompt

    def _task(self, target: Target, tokens: WhisperTokens) -> int:
        translate = not self.target_language_prompt and target.source != target.language
        task = tokens.translate if translate else tokens.transcribe
        if task is None:
            raise SprachbundError("the tokenizer has no <|translate|> token, but the pairs list translation")
        return task


def _context(text: str, tokens: WhisperTokens, max_tokens: int) -> list[int]:
    if not text.strip():
        return []
    if tokens.previous is None:
        raise SprachbundError("this model has no <|startofprev|> token; leave the context out")
    return [tokens.previous, *tokens.text_to_tokens(" " + text.strip())[-(max_tokens - 1) :]]


def _listed(listed: object, tokens: WhisperTokens) -> Pairs:
    if not isinstance(listed, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(tag, str) for tag in pair)
        for pair in listed
    ):
        raise SprachbundError(
            f"'pairs' in config.json has to be a list of [source, target], not {repr(listed)[:60]}"
        )
    pairs = frozenset((_BCP47.get(source, source), _BCP47.get(target, target)) for source, target in listed)
    unknown = sorted({tag for pair in pairs for tag in pair} - set(tokens.languages))
    if unknown or not pairs:
        raise SprachbundError(
            f"'pairs' in config.json names languages without a token: {', '.join(unknown) or 'none'}"
        )
    return pairs
