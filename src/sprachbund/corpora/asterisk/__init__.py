"""Human speech: the recorded prompts of Debian's asterisk packages, cleaned, split, and composed into
utterances.
"""

from sprachbund.corpora.asterisk.prompts import (
    Clips,
    Prompt,
    PromptSet,
    load_clips,
    load_prompt_set,
    load_prompts,
)
from sprachbund.corpora.asterisk.writing import prepare, write_composed

__all__ = [
    "Clips",
    "Prompt",
    "PromptSet",
    "load_clips",
    "load_prompt_set",
    "load_prompts",
    "prepare",
    "write_composed",
]
