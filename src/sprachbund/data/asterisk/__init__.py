"""Human speech: the recorded prompts of Debian's asterisk packages, cleaned, split, and composed into
utterances.
"""

from sprachbund.data.asterisk.clips import Clips, load_clips
from sprachbund.data.asterisk.prompts import Prompt, PromptSet, load_prompt_set, load_prompts
from sprachbund.data.asterisk.writing import prepare, write_composed

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
