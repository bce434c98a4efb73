"""The language model of a speech LLM: a model of transformers with a cache for the searches, prompts, and a small one.

Every row has a prefix (its instruction and its speech) of its own length, then its tokens; both lie in one cache, so
rows may differ in everything and are still stepped together. Shapes: R rows, P prefix positions, Q tokens of a step,
C slots of the cache, D width, H heads, V vocabulary.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.data.batch import NO_LANGUAGE, Augment, Batch, Row
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Loss, Target
from sprachbund.models.hub import layout_of, optional_setting
from sprachbund.models.speech_llm.attention import with_attention_by_length
from sprachbund.models.speech_llm.checkpoints import context_of, library
from sprachbund.models.speech_llm.config import Options, PromptOptions
from sprachbund.nn.causal_lm import PrefixCache
from sprachbund.text.languages import language_name


class _Pass:
    """One pass of the language model over new positions (R, Q): what transformers takes for its cache."""

    is_compileable = False

    def __init__(self, cache: PrefixCache, positions: Tensor) -> None:
        self.cache, self.positions = cache, positions
        self.used = int(positions.max()) + 1

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values (R, H, Q, D/H); all of them up to the last.

        Args:
            keys: (R, H, Q, D/H).
            values: (R, H, Q, D/H).
            layer_idx: number of the layer.
        """
        return self.cache.put(layer_idx, self.positions, self.used, keys, values)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions held before the pass, of the longest row."""
        return self.used - self.positions.shape[1]

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Additive mask of the scores (R, 1, Q, used), which hides the positions behind each query."""
        slots = torch.arange(self.used, device=self.positions.device)
        hidden = slots > self.positions[:, None, :, None]
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(
            hidden, torch.finfo(dtype).min
        )


_LLAMA_LIKE = (
    *(
        "apertus",
        "arcee",
        "bitnet",
        "cohere",
        "cohere2",
        "ernie4_5",
        "exaone4",
        "gemma",
        "gemma2",
        "gemma3_text",
    ),
    *(
        "glm",
        "glm4",
        "gpt_neox",
        "gpt_oss",
        "granite",
        "granitemoe",
        "helium",
        "llama",
        "ministral3",
        "mistral",
    ),
    *(
        "mixtral",
        "olmo",
        "olmo2",
        "olmo3",
        "olmoe",
        "persimmon",
        "phi",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
    ),
    *("qwen3_moe", "seed_oss", "smollm3", "stablelm", "starcoder2"),
)
_GPT2_LIKE = ("codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gptj")
LAYERS: Mapping[str, Literal["layers", "h"]] = {
    **dict.fromkeys(_LLAMA_LIKE, "layers"),
    **dict.fromkeys(_GPT2_LIKE, "h"),
}
"""Model type to what transformers calls its layers, for types whose layers attend to everything before."""


class LanguageModel(nn.Module):
    """Embeddings in, logits out, in whole rows or step by step.

    Args:
        model: a causal language model of transformers.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = with_attention_by_length(model)
        self.context = context_of(model)
        config = model.config.get_text_config()
        self.width: int = config.hidden_size
        self.vocabulary_size: int = config.vocab_size

    @property
    def layers(self) -> Sequence[nn.Module]:
        """Layers of the model, for code that measures or recomputes by layers. Raises SprachbundError for a type not in
        `LAYERS`.
        """
        base, name = (
            self.model.base_model,
            layout_of(LAYERS, self.model.config.model_type, "a language model"),
        )
        layers: Sequence[nn.Module] = base.h if name == "h" else base.layers
        return layers

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings (..., D) of tokens (...)."""
        embedded: Tensor = self.model.get_input_embeddings()(tokens)
        return embedded

    def forward(self, rows: Tensor, wanted: Tensor) -> Tensor:
        """Logits (R, W, V) at the positions `wanted` (W,) of whole rows (R, U, D), padded behind their ends."""
        # Padding stands behind, where causal attention never looks back from: no mask is needed.
        positions = torch.arange(rows.shape[1], device=rows.device).expand(len(rows), -1)
        output = self.model(
            inputs_embeds=rows, position_ids=positions, use_cache=False, logits_to_keep=wanted
        )
        logits: Tensor = output.logits
        return logits

    def start(self, prefixes: Sequence[Tensor], *, capacity: int, num_memories: int) -> PrefixCache:
        """Read the prefixes (P, D) of the R rows, each of its own length, into a new cache.

        `capacity` tokens fit behind the longest.

        Args:
            prefixes: (P, D) of each of the R rows.
            capacity: tokens that fit behind the longest prefix.
            num_memories: B utterances that the rows belong to.
        """
        lengths = torch.tensor([len(p) for p in prefixes], device=prefixes[0].device)
        padded = nn.utils.rnn.pad_sequence(list(prefixes), batch_first=True)
        cache = PrefixCache.empty(lengths, padded.shape[1] + capacity, num_memories)
        positions = torch.arange(padded.shape[1], device=padded.device).expand(len(prefixes), -1)
        self._pass(padded, positions, cache, logits_to_keep=1)
        return cache

    def step(self, tokens: Tensor, cache: PrefixCache) -> Tensor:
        """Logits (R, Q, V) after each of `tokens` (R, Q), which follow what the cache holds.

        Raises:
            ValueError: when a row would hold more tokens than the cache can.
        """
        used = cache.used + tokens.shape[1]
        if used > cache.capacity:
            raise ValueError(f"{used} tokens do not fit into a cache of {cache.capacity}")
        positions = cache.lengths[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        logits = self._pass(self.embed(tokens), positions + cache.prefix[:, None], cache, logits_to_keep=0)
        cache.grow(tokens.shape[1])
        return logits

    def _pass(
        self, embedded: Tensor, positions: Tensor, cache: PrefixCache, *, logits_to_keep: int
    ) -> Tensor:
        one = _Pass(cache, positions)
        output = self.model(
            inputs_embeds=embedded,
            position_ids=positions,
            attention_mask=one.mask(embedded.dtype),
            past_key_values=one,
            use_cache=True,
            logits_to_keep=logits_to_keep,
        )
        logits: Tensor = output.logits
        return logits


# Prompts: tokens around the speech, and the tokenizer.
#
# The text comes before the speech (arXiv 2511.10670). The chat template of the tokenizer is used where
# there is one.

_SPEECH = "\N{OBJECT REPLACEMENT CHARACTER}"


class Prompts:
    """Tokens before and behind the speech.

    Args:
        tokenizer: tokenizer of transformers.
        options: wording of the prompt.
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
        has_chat = bool(optional_setting(tokenizer, "chat_template"))
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


# A small language model for experiments without a pretrained one: its tokenizer and its loss on texts.
#
# It learns rows of instruction, transcript and translation, all as text, so that speech tokens later take the position
# of the transcript. It is a model of transformers, saved as such. Shapes: B utterances, U tokens of a row.

PAD, START, END = "<pad>", "<s>", "</s>"
_IGNORED = -100


class TextLLMOptions(Options):
    """Sizes of a Llama of one's own.

    Attributes:
        width: width of the states.
        num_layers: layers of the model.
        num_heads: attention heads.
        inner_width: hidden width of the feed-forwards.
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
    """A byte-level BPE tokenizer (arXiv 1508.07909) of transformers, fitted on texts and instructions.

    Args:
        texts: texts to be written.
        languages: BCP-47 tags, which the instructions name.
        prompts: give the instructions.
        size: number of tokens.
    """
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
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: optional_setting(tokenizer, name) for name in names}
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
        written: BCP-47 tags of the languages wanted, in the same way.
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
        each, rows = batch.rows_per_utterance, []
        for r, length in enumerate(batch.num_targets.tolist()):
            b = r // each
            source = int(batch.source_language[b])
            target = Target(
                language=self.written[int(batch.target_language[r])],
                source=None if source == NO_LANGUAGE else self.heard[source],
            )
            before, behind = self.prompts.around(target)
            said = batch.spoken.tokens[b, : int(batch.spoken.num_tokens[b])].tolist()
            text = batch.targets[r, :length].tolist()
            tokens = [*before, *said, *behind, *text] if length else []
            rows.append(torch.tensor(tokens, dtype=torch.long, device=batch.targets.device))
        return rows


class TextExamples:
    """`sprachbund.data.loading.Examples` of texts alone: the sound is not looked at.

    Args:
        prompts: prompts with the tokenizer.
        heard: BCP-47 tags of what is said.
        written: BCP-47 tags of the languages wanted, in the same way.
        max_tokens: most of a text.
    """

    frames_per_s = 0
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

    def transcript(self, text: str) -> None:
        """None: there is no CTC head."""

    def row(self, text: str, source: str | None, target: str) -> Row:
        """Number of the language wanted and the text's tokens, ended.

        Args:
            text: text of the row, in the language `target`.
            source: BCP-47 tag of the language spoken; None where nobody speaks.
            target: BCP-47 tag of the language written.
        """
        return self.target_languages.index(target), [
            *self.prompts.text_to_tokens(text.strip()),
            self.prompts.end,
        ]
