"""What a Whisper checkpoint was trained to do: its language pairs, and the prompt that asks for one of them.

Whisper's own prompt names the language *spoken* and a task, so it knows transcription and translation into
English. Checkpoints fine-tuned to translate into many languages name the language *wanted* instead; they say
so in `config.json`: `"sprachbund": {"target_language_prompt": true, "pairs": [["en", "de"], ...]}`. With
`"bare_prompt": true` they name nothing else: no task, and no timestamps (arXiv 2508.11189, section 2.1).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sprachbund.errors import SprachbundError
from sprachbund.models.family import Target
from sprachbund.models.whisper.config import FIRST_MULTILINGUAL_VOCABULARY, WhisperConfig
from sprachbund.models.whisper.tokens import WhisperTokens

Pairs = frozenset[tuple[str, str]]
ENGLISH = "en"
CONFIG_KEY = "sprachbund"
"""Our own key of `config.json`; transformers carries it along untouched."""


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """Pairs (source, target) as BCP-47 tags, and how they are asked for.

    Attributes:
        pairs: what the checkpoint knows; (x, x) is transcription.
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
    ) -> "Tasks":
        """Find out from the files of a checkpoint.

        A checkpoint with fewer decoder than encoder layers is a distilled one (turbo, Distil-Whisper); those
        were trained on transcription only, though their vocabulary still has the translation token. That
        English Distil-Whisper checkpoints know English only cannot be told from their files: they keep the
        multilingual vocabulary. List their "pairs" as above to have other languages refused.

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
                    "this model has to be told the language spoken; give it, or detect it from the audio"
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
    pairs = frozenset((source, target) for source, target in listed)
    unknown = sorted({tag for pair in pairs for tag in pair} - set(tokens.languages))
    if unknown or not pairs:
        raise SprachbundError(
            f"'pairs' in config.json names languages without a token: {', '.join(unknown) or 'none'}"
        )
    return pairs
