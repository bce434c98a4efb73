"""A small decoder language model of one's own, where no pretrained one is at hand: its tokenizer, its loss on texts.

It is taught what a speech LLM asks of it: the instruction, what was said, then what is wanted, all as text, so that
speech tokens have only to stand where the words said stood. It is a model of transformers like any other, saved as
such. Shapes: B utterances, R rows, U tokens of a row.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.data.batch import NO_LANGUAGE, Batch
from sprachbund.data.examples import Augment, Row
from sprachbund.models.family import Target
from sprachbund.models.loss import Loss
from sprachbund.models.speech_llm.config import Options, PromptOptions
from sprachbund.models.speech_llm.foreign import library
from sprachbund.models.speech_llm.llm import LanguageModel
from sprachbund.models.speech_llm.prompts import Prompts
from sprachbund.text.languages import language_name

PAD, START, END = "<pad>", "<s>", "</s>"
_IGNORED = -100


class TextLLMOptions(Options):
    """Sizes of a Llama of one's own.

    Attributes:
        width: D.
        num_layers: L.
        num_heads: H.
        inner_width: of the feed-forwards.
        vocabulary_size: most tokens, of which 256 are bytes.
        context: longest row, in tokens.
    """

    width: PositiveInt = 192
    num_layers: PositiveInt = 4
    num_heads: PositiveInt = 4
    inner_width: PositiveInt = 512
    vocabulary_size: PositiveInt = 1500
    context: PositiveInt = 512


def fit_tokenizer(texts: Iterable[str], languages: Iterable[str], prompts: PromptOptions, size: int) -> Any:
    """A byte-level BPE tokenizer (arXiv 1508.07909) of transformers, fitted on texts and instructions."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    asked = [prompts.translate.format(language=language_name(tag)) for tag in languages]
    plain.train_from_iterator([*texts, prompts.transcribe, *asked], trainer)
    return library().PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token=START, eos_token=END, pad_token=PAD
    )


def make_text_llm(options: TextLLMOptions, tokenizer: Any = None) -> Any:
    """A new causal language model of transformers with random weights; without its tokenizer, of the shape alone."""
    ids = {name: getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = library().LlamaConfig(
        vocab_size=options.vocabulary_size if tokenizer is None else len(tokenizer),
        hidden_size=options.width,
        intermediate_size=options.inner_width,
        num_hidden_layers=options.num_layers,
        num_attention_heads=options.num_heads,
        num_key_value_heads=options.num_heads,
        max_position_embeddings=options.context,
        tie_word_embeddings=True,
        **ids,
    )
    return library().LlamaForCausalLM(config)


class _NoEncoder(nn.Module):
    """Stands where the training loop looks for an encoder's layers."""

    layers: Sequence[nn.Module] = ()


class TextLLM(nn.Module):
    """A causal language model of transformers, as the training loop takes it.

    Args:
        llm: the model.
        prompts: instructions, with its tokenizer.
        heard: BCP-47 tags of what is said, in the order of their numbers.
        written: of what is wanted.
    """

    name = "text LLM"

    def __init__(self, llm: Any, prompts: Prompts, heard: Sequence[str], written: Sequence[str]) -> None:
        super().__init__()
        self.encoder, self.decoder = _NoEncoder(), LanguageModel(llm)
        self.prompts, self.heard, self.written = prompts, tuple(heard), tuple(written)

    @property
    def llm(self) -> Any:
        """The model of transformers."""
        return self.decoder.model

    def forward(self, batch: Batch) -> Loss:
        """The loss, as wrappers that watch `forward` expect it."""
        return self.loss(batch)

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of every token of the rows behind the first: instruction, what was said, what is wanted."""
        # A batch, or a process's share of one, may have no row that counts; its loss is 0 and has a graph.
        rows = [row for row in self._rows(batch) if len(row) > 1] or [batch.targets.new_full((2,), _IGNORED)]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=_IGNORED)
        logits = self.llm(input_ids=padded[:, :-1].clamp(min=0), use_cache=False).logits.float()
        wanted = padded[:, 1:]
        total = F.cross_entropy(
            logits.flatten(0, 1), wanted.flatten(), ignore_index=_IGNORED, reduction="sum"
        )
        return Loss.of_text(total, int((wanted != _IGNORED).sum()))

    def _rows(self, batch: Batch) -> list[Tensor]:
        """Whole rows (U,) of tokens; of one that does not count, nothing."""
        assert batch.spoken is not None
        assert batch.num_spoken is not None
        each, rows = batch.rows_per_utterance, []
        for r, length in enumerate(batch.num_targets.tolist()):
            b = r // each
            source = int(batch.source_language[b])
            target = Target(
                language=self.written[int(batch.target_language[r])],
                source=None if source == NO_LANGUAGE else self.heard[source],
            )
            before, behind = self.prompts.around(target)
            said = batch.spoken[b, : int(batch.num_spoken[b])].tolist()
            text = batch.targets[r, :length].tolist()
            tokens = [*before, *said, *behind, *text] if length else []
            rows.append(torch.tensor(tokens, dtype=torch.long, device=batch.targets.device))
        return rows


class TextExamples:
    """`sprachbund.data.examples.Examples` of texts alone: the sound is not looked at.

    Args:
        prompts: with the tokenizer.
        heard: BCP-47 tags of what is said.
        written: of what is wanted.
        max_tokens: most of a text.
    """

    frames_per_s = 1
    whole_windows = False
    max_window_s: float | None = None

    def __init__(
        self, prompts: Prompts, heard: Sequence[str], written: Sequence[str], max_tokens: int
    ) -> None:
        self.prompts, self.max_tokens = prompts, max_tokens
        self.source_languages, self.target_languages = list(heard), list(written)

    def number(self, language: str) -> int:
        """Place of a language among those that are said."""
        return self.source_languages.index(language)

    def features(self, samples: np.ndarray, augment: Augment) -> tuple[Tensor, int]:
        """One empty frame (1, 1)."""
        return torch.zeros(1, 1), 1

    def transcript(self, text: str) -> list[int]:
        """None: there is no CTC head."""
        return []

    def row(self, text: str, source: str | None, target: str) -> Row:
        """Number of the language wanted and the text's tokens, ended."""
        return self.target_languages.index(target), [
            *self.prompts.text_to_tokens(text.strip()),
            self.prompts.end,
        ]
