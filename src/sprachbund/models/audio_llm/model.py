"""The common part of Voxtral, Granite Speech and Qwen3-ASR: an encoder, a projector and a language model.

Speech becomes tokens of the language model, between a part of the prompt before them and a part behind. Shapes:
B utterances, T feature frames, P speech tokens, R rows, Q tokens of a step, V vocabulary, S source languages.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.batch import NO_LANGUAGE, Augment, Batch, Row
from sprachbund.errors import SprachbundError
from sprachbund.models.audio_llm.config import AudioLLMConfig
from sprachbund.models.audio_llm.tokens import LLMTokens
from sprachbund.models.base import Capabilities, Features, Loss, Memory, Target, not_written
from sprachbund.models.calibration import Calibration
from sprachbund.models.prefix import SpeechPrefixFamily
from sprachbund.nn.causal_lm import CausalLM
from sprachbund.text.languages import described
from sprachbund.util.devices import ANY_DEVICE

_LEAST_S = 1.0
_IGNORED = -100
_CONTEXT_TOKENS = 200
"""Most tokens of a glossary or of text that came before."""


class FrontEnd(Protocol):
    """A front end that computes features."""

    def __call__(self, samples: np.ndarray) -> tuple[Tensor, int]:
        """Features (T, M) of an utterance, 16 kHz samples, and T."""
        ...


class AudioLLM(SpeechPrefixFamily):
    """Base of the families; with the methods of a kind it satisfies `sprachbund.models.base.Family`.

    Args:
        config: shape and languages.
        values: config.json as it was read.
        tokens: the vocabulary.
        ends: tokens that end a row; training rows end with the first.

    Attributes:
        files: other files of the directory, by name, to be carried along.
        label_smoothing: label smoothing of the loss (arXiv 1512.00567, section 7).
        reads_context: whether text that came before, or a glossary, has a place in the prompt.
        language_from_text: see `Capabilities`.
        frames_per_s: frames of the features in a second.
        front_end: from samples to features; holds no weights, so that worker processes can carry it about.
    """

    has_unused_parameters = False
    reads_context = False
    language_from_text = True
    frames_per_s = 100
    llm: CausalLM
    encoder: nn.Module
    projector: nn.Module
    front_end: FrontEnd
    frame_s: float

    def __init__(
        self, config: AudioLLMConfig, values: Mapping[str, Any], tokens: LLMTokens, ends: Sequence[int]
    ) -> None:
        super().__init__()
        self.config, self.values, self.tokens = config, dict(values), tokens
        self.ends = tuple(dict.fromkeys(ends))
        self.llm = CausalLM(config.text_config.shape)
        self._pairs = frozenset(config.pairs)
        self.source_languages = tuple(dict.fromkeys(source for source, _ in config.pairs))
        self.target_languages = tuple(dict.fromkeys(target for _, target in config.pairs))
        self.files: dict[str, bytes] = {}
        self.drafts: Mapping[str, Path] = {}
        self.calibration = Calibration()
        self.label_smoothing = 0.0

    # What a kind has to say.

    def hear(self, values: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """Speech tokens (B, P, D) of features (B, T, M), and how many (B,) are each utterance's."""
        raise NotImplementedError

    def around(self, target: Target) -> tuple[list[int], list[int]]:
        """Tokens of the prompt before the speech and behind it, of the latter one at least; the pair is known."""
        raise NotImplementedError

    # The family.

    @property
    def name(self) -> str:
        """Name of the family."""
        return str(self.values["model_type"])

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.llm.embed_tokens.weight.device

    @property
    def decoder(self) -> CausalLM:
        """The language model, which writes the text, under the name that a decoder has in every family."""
        return self.llm

    @property
    def capabilities(self) -> Capabilities:
        """A language model; its attention is not shown, so words get no times."""
        return Capabilities(
            encoder=self.encoder,
            decoder=self.llm,
            encode_text=self.tokens.text_to_tokens,
            language_from_text=self.language_from_text and len(self.source_languages) > 1,
            reads_context=self.reads_context,
            reads_prefix=True,
            devices=ANY_DEVICE,
        )

    @property
    def end_token(self) -> int:
        """Ends a row."""
        return self.ends[0]

    @property
    def max_tokens(self) -> int:
        """Longest row: the prompt behind the speech, and the text."""
        return self.config.sprachbund.max_new_tokens + self._longest[1]

    @property
    def max_window_s(self) -> float:
        """Longest speech: our window, and what fits beside prompt and text into the language model."""
        return min(self.config.sprachbund.window_s, self._room_s())

    def pairs(self) -> frozenset[tuple[str, str]]:
        """Every (source, target) the model knows."""
        return self._pairs

    def features(self, samples: Sequence[np.ndarray]) -> Features:
        """Features (B, T, M) of utterances given as 16 kHz mono float32 samples.

        Raises:
            SprachbundError: an utterance is longer than a window.
        """
        longest_s = max((len(s) for s in samples), default=0) / SAMPLE_RATE
        if longest_s > self.max_window_s + 1 / SAMPLE_RATE:
            raise SprachbundError(
                f"an utterance lasts {longest_s:.1f} s, and {self.name} reads up to {self.max_window_s:g} s at once; "
                "cut it, or set sprachbund.window_s in config.json as far as the language model's context allows"
            )
        made = [self.front_end(s) for s in samples]
        values = nn.utils.rnn.pad_sequence([values for values, _ in made], batch_first=True)
        lengths = torch.tensor([count for _, count in made])
        return Features(values=values.to(self.device), num_frames=lengths.to(self.device))

    def encode(self, features: Features) -> Memory:
        """Run encoder and projector; states are speech tokens (B, P, D)."""
        values = features.values.to(self.llm.dtype)
        states, num_tokens = self.hear(values, features.num_frames)
        return Memory(states=states, num_frames=num_tokens)

    def language_log_probs(self, memory: Memory) -> Tensor:
        """Log-probabilities (B, S), all alike: the language is identified from the text."""
        return memory.states.new_zeros(len(memory.states), len(self.source_languages)).log_softmax(dim=-1)

    def step(self, tokens: Tensor, cache: Any, weights: list[Tensor] | None = None) -> Tensor:
        """Logits (R, Q, V) after each of `tokens` (R, Q); see `PrefixFamily`.

        Args:
            tokens: (R, Q), which follow what the cache holds.
            cache: cache of the R rows; the tokens are added to it.
            weights: has to be None: attention is not shown.
        """
        logits = super().step(tokens, cache, weights)
        if len(self.ends) > 1:  # searches know one end: it is as likely as the likeliest
            logits[..., self.ends[0]] = logits[..., list(self.ends)].amax(dim=-1)
        return logits

    def suppressed(self, target: Target) -> Tensor:
        """Boolean (V,): all that is no text, but the end. Nothing that is said can make the model write markup."""
        mask = self.tokens.not_text.clone()
        mask[self.end_token] = False
        return mask.to(self.device)

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        return self.tokens.tokens_to_text(tokens)

    # Training.

    def forward(self, batch: Batch) -> Loss:
        """The loss, as wrappers that watch `forward` expect it."""
        return self.loss(batch)

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the text behind prompt and speech.

        The features of the batch are those of `features`; its `target_language` are numbers in `target_languages`.
        """
        memory = self.encode(Features(values=batch.features, num_frames=batch.num_frames))
        rows, wanted = self._rows(batch, memory)
        positions = (wanted != _IGNORED).any(0).nonzero().flatten()
        logits = self.llm(rows, positions).float()
        labels = wanted[:, positions].flatten()
        total = F.cross_entropy(
            logits.flatten(0, 1),
            labels,
            ignore_index=_IGNORED,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return Loss.of_text(total, int((wanted != _IGNORED).sum()))

    def _rows(self, batch: Batch, memory: Memory) -> tuple[Tensor, Tensor]:
        """Embeddings of whole rows (R, U, D), and the token that is to follow each position (R, U)."""
        assert memory.num_frames is not None
        each = batch.rows_per_utterance
        sources = batch.source_language.repeat_interleave(each).tolist()
        rows, wanted = [], []
        for r, (source, target) in enumerate(zip(sources, batch.target_language.tolist(), strict=True)):
            language = self.target_languages[target]
            spoken = language if source == NO_LANGUAGE else self.source_languages[source]
            asked = Target(language=language, source=spoken if (spoken, language) in self._pairs else None)
            before, behind = self.prompt_parts(asked)
            text = batch.targets[r, : int(batch.num_targets[r])].tolist()
            speech = memory.states[r // each, : memory.num_frames[r // each]]
            given = torch.tensor([*behind, *text[:-1]], device=self.device)
            row = torch.cat([self._joined(before, speech), self.llm.embed(given)])
            first = len(row) - max(0, len(text) - 1)  # the first target follows the last of the prompt
            rows.append(row)
            wanted.append(torch.tensor([_IGNORED] * (first - 1) + (text or [_IGNORED]), device=self.device))
        return (
            nn.utils.rnn.pad_sequence(rows, batch_first=True),
            nn.utils.rnn.pad_sequence(wanted, batch_first=True, padding_value=_IGNORED),
        )

    # Prompts and their room.

    def prompt_parts(self, target: Target) -> tuple[list[int], list[int]]:
        """As `SpeechPrefixFamily`."""
        if target.language not in self.target_languages:
            raise not_written(target.language, self.target_languages)
        if target.source is not None and (target.source, target.language) not in self._pairs:
            raise SprachbundError(
                f"this model does not know the pair {target.source} to {target.language}; from {target.source} it "
                f"writes {described(sorted(t for s, t in self._pairs if s == target.source))}"
            )
        return self.around(target)

    def context_tokens(self, text: str) -> list[int]:
        """The last tokens of a text that came before, or of a glossary, as far as there is room.

        Raises:
            SprachbundError: it spells out a special token.
        """
        return self.tokens.text_to_tokens(text.strip())[-_CONTEXT_TOKENS:]

    @cached_property
    def _longest(self) -> tuple[int, int]:
        """Most tokens of a prompt before the speech, and behind it."""
        targets = [Target(language=t, source=s) for s, t in self._pairs]
        targets += [Target(language=t) for t in self.target_languages]
        both = [self.around(target) for target in targets]
        context = _CONTEXT_TOKENS if self.reads_context else 0
        return max(len(before) for before, _ in both) + context, max(len(behind) for _, behind in both)

    def check_room(self) -> None:
        """Raise SprachbundError where the language model's context leaves no room for speech."""
        if (room_s := self._room_s()) < _LEAST_S:
            raise SprachbundError(
                f"the language model's context of {self.llm.context} tokens leaves {room_s:.1f} s for speech beside "
                f"prompt and text ({self.config.sprachbund.max_new_tokens} tokens); set a smaller "
                "sprachbund.max_new_tokens in config.json"
            )

    def _room_s(self) -> float:
        """Seconds of speech that fit into the language model beside the longest prompt and text."""
        room = self.llm.context - sum(self._longest) - self.config.sprachbund.max_new_tokens
        return max(0.0, self.room_s(room))

    def room_s(self, num_tokens: int) -> float:
        """Seconds of speech that so many tokens hold."""
        return num_tokens * self.frame_s


class AudioLLMExamples:
    """`sprachbund.data.loading.Examples` of any of them.

    Args:
        model: model whose tokens and features are used.
        languages: languages spoken in the data, and drawn as targets as far as the model writes them.

    Raises:
        SprachbundError: a language that the model does not hear, or none that it writes.
    """

    whole_windows = False

    def __init__(self, model: AudioLLM, languages: Sequence[str]) -> None:
        if unknown := sorted(set(languages) - set(model.source_languages)):
            raise SprachbundError(
                f"the model does not know {', '.join(unknown)}, and its prompt names languages; it knows "
                f"{described(model.source_languages)}"
            )
        self.frames_per_s = model.frames_per_s
        self.max_tokens = model.config.sprachbund.max_new_tokens
        self.max_window_s: float | None = model.max_window_s
        self.source_languages = list(languages)
        self.target_languages = [tag for tag in languages if tag in model.target_languages]
        self.pairs, self.end_token, self.tokens = model.pairs(), model.end_token, model.tokens
        self._features = model.front_end
        self._heard = {tag: number for number, tag in enumerate(model.source_languages)}
        self._written = {tag: number for number, tag in enumerate(model.target_languages)}

    def number(self, language: str) -> int:
        """Place of a source language among the model's."""
        return self._heard[language]

    def features(self, samples: np.ndarray, augment: Augment) -> tuple[Tensor, int]:
        """Features (T, M) and T."""
        values, count = self._features(samples)
        return augment(values), count

    def transcript(self, text: str) -> None:
        """None: there is no CTC head that is trained."""

    def row(self, text: str, source: str | None, target: str) -> Row | None:
        """Number of the target language and the text's tokens; None for a pair that the model does not know.

        Args:
            text: text of the row, in the language `target`.
            source: BCP-47 tag of the language spoken; None where nobody speaks, and the row ends at once.
            target: BCP-47 tag of the language written.
        """
        if source is not None and (source, target) not in self.pairs:
            return None
        return self._written[target], [*self.tokens.text_to_tokens(text.strip()), self.end_token]
