"""A new Whisper of any size with a vocabulary of its own, for experiments that do not start from a published one."""

from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from sprachbund.models.whisper.companions import TOKENIZER, Companions
from sprachbund.models.whisper.config import WhisperConfig
from sprachbund.models.whisper.model import Whisper
from sprachbund.models.whisper.tokens import WhisperTokens, language_name

_TASKS = ("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>")


def fit_tokenizer(texts: Iterable[str], languages: Sequence[str], num_text_tokens: int) -> Tokenizer:
    """Pairs of bytes (arXiv 1508.07909) fitted on texts, then the special tokens in Whisper's order, without times.

    Args:
        texts: as Whisper writes them, with a space at the beginning of a word.
        languages: BCP-47 tags; each gets a token.
        num_text_tokens: at most; 256 stand for single bytes.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_text_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    names = ["<|endoftext|>", "<|startoftranscript|>", *map(language_name, languages), *_TASKS]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def new_whisper(config: WhisperConfig, tokenizer: Tokenizer) -> Whisper:
    """A Whisper of random weights; `config.vocabulary_size` has to be that of the tokenizer."""
    companions = Companions(
        generation={"is_multilingual": True}, files={TOKENIZER: tokenizer.to_str().encode()}
    )
    return Whisper(config, tokens=WhisperTokens(tokenizer, config.vocabulary_size), companions=companions)
