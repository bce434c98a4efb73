"""What a language model reads around the speech, in tokens; the tokenizer behind it.

The text comes before the speech (arXiv 2511.10670). The chat template of the tokenizer is used where there is one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.family import Target
from sprachbund.models.speech_llm.config import PromptOptions
from sprachbund.text.languages import language_name

_SPEECH = "\N{OBJECT REPLACEMENT CHARACTER}"


class Prompts:
    """Tokens before and behind the speech.

    Args:
        tokenizer: of transformers.
        options: what is said.
        vocabulary_size: V of the language model, which may be more than the tokenizer knows.

    Attributes:
        end: the token that ends a row.
        not_text: boolean (V,): tokens never to be written, the end not among them.

    Raises:
        SprachbundError: a tokenizer without an end token or of another model, or a chat asked for that it has not.
    """

    def __init__(self, tokenizer: Any, options: PromptOptions, vocabulary_size: int) -> None:
        self.tokenizer, self.options = tokenizer, options
        if tokenizer.eos_token_id is None:
            raise SprachbundError(
                "the tokenizer has no end token; set eos_token in tokenizer_config.json to the one it ends texts with"
            )
        if len(tokenizer) > vocabulary_size:
            raise SprachbundError(
                f"the tokenizer has {len(tokenizer)} tokens but the language model {vocabulary_size}; "
                "take the tokenizer of the same model"
            )
        has_chat = bool(getattr(tokenizer, "chat_template", None))
        if options.chat and not has_chat:
            raise SprachbundError(
                "prompts.chat is true, but the tokenizer has no chat template; set it to false"
            )
        self.chat = has_chat if options.chat is None else options.chat
        self.end = int(tokenizer.eos_token_id)
        self.not_text = self._not_text(vocabulary_size)
        self._known: dict[tuple[bool, str], tuple[list[int], list[int]]] = {}

    def around(self, target: Target) -> tuple[list[int], list[int]]:
        """Tokens before the speech and behind it; of the latter there is one at least."""
        key = (target.source == target.language, target.language)
        if key not in self._known:
            self._known[key] = self._made(*key)
        return self._known[key]

    def text_to_tokens(self, text: str) -> list[int]:
        """Tokens of ordinary text.

        Raises:
            SprachbundError: the text spells out a special token, which would steer the model.
        """
        tokens = self._tokens(text)
        if steering := [t for t in tokens if bool(self.not_text[t]) or t == self.end]:
            name = self.tokenizer.convert_ids_to_tokens(steering[0])
            raise SprachbundError(f"the text contains the special token {name}; take it out")
        return tokens

    def tokens_to_text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def _made(self, transcribe: bool, language: str) -> tuple[list[int], list[int]]:
        options = self.options
        said = (
            options.transcribe if transcribe else options.translate.format(language=language_name(language))
        )
        parts = {"text": said, "speech": _SPEECH}
        whole = "\n".join(parts[part] for part in options.order)
        if self.chat:
            talk = [{"role": "user", "content": whole}]
            whole = self.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        else:
            whole += "\n"
        before, behind = whole.split(_SPEECH)
        # Chat templates write the start token themselves.
        start = [] if self.chat or self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        return [*start, *self._tokens(before)], self._tokens(behind) or [self.end]

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False)) if text else []

    def _not_text(self, vocabulary_size: int) -> Tensor:
        mask = torch.zeros(vocabulary_size, dtype=torch.bool)
        mask[len(self.tokenizer) :] = True
        mask[list(self.tokenizer.all_special_ids)] = True
        mask[self.end] = False
        return mask
