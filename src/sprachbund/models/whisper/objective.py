"""Texts as the rows of tokens that a Whisper decoder is taught with: what follows a prompt."""

from sprachbund.models.whisper.model import Whisper
from sprachbund.text.languages import writes_spaces


def target_tokens(model: Whisper, text: str, language: str) -> list[int]:
    """Tokens that are to follow the prompt for `language`, the end included.

    Whisper begins a text with a space where the language separates words by one.
    """
    space = " " if writes_spaces(language) else ""
    return [*model.tokens.text_to_tokens(space + text.strip()), model.tokens.end]
