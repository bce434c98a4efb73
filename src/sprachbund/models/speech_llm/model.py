"""A speech encoder, a projector of experts and a language model as one of the model families (arXiv 2511.10670).

The paper's figure and result lines alone are public: what is here is a reconstruction. Encoder and language model are
frozen but for adapters. Shapes: B utterances, P speech tokens, R rows, Q tokens of a step, V vocabulary, G groups,
S source languages.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data.batch import Augment, Batch, Row
from sprachbund.data.language_spans import Stretch
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Capabilities, Features, Loss, Memory, Target, not_written
from sprachbund.models.calibration import Calibration
from sprachbund.models.prefix import SpeechPrefixFamily
from sprachbund.models.speech_llm.checkpoints import adapt
from sprachbund.models.speech_llm.config import LossWeights, PromptOptions, SpeechLLMConfig
from sprachbund.models.speech_llm.encoders import SpeechEncoder
from sprachbund.models.speech_llm.llm import LanguageModel, Prompts
from sprachbund.models.speech_llm.objective import RoutedMemory, smoothed, speech_llm_loss, stretches
from sprachbund.models.speech_llm.projector import Projector, SpeechTokens
from sprachbund.text.languages import described
from sprachbund.util.devices import ANY_DEVICE

_SPAN_S = 0.3
"""Router decisions are averaged over so long before they are called spans: no word is said in less."""
_LEAST_S = 1.0

NAME = "speech_llm"
"""Name of the family, in model directories too."""


class SpeechLLM(SpeechPrefixFamily):
    """A speech translator around a language model; satisfies `sprachbund.models.base.Family` with its tokenizer.

    Args:
        encoder: see `encoders`; becomes part of this, frozen but for new adapters.
        llm: a causal language model of transformers; likewise.
        config: everything else.
        tokenizer: tokenizer of the language model; without it the model has shapes and weights, but no prompts.

    Attributes:
        losses: weights of the losses beside cross-entropy; the stages of training set them.
        sources: paths or hub names of encoder and language model, None where they came from none.

    Raises:
        SprachbundError: a language model that cannot hold a second of speech, or is of a kind that is not taken; layers
            for adapters that are not there; a tokenizer of another model.
    """

    llm: LanguageModel

    def __init__(
        self, encoder: SpeechEncoder, llm: Any, config: SpeechLLMConfig, *, tokenizer: Any = None
    ) -> None:
        super().__init__()
        self.config = config
        self.losses: LossWeights = config.losses
        self.encoder = encoder
        self.llm = LanguageModel(llm)
        layers = config.projector.encoder_layers
        encoder.check_layers(layers)
        self.projector = Projector((1 + len(layers)) * encoder.width, self.llm.width, config.projector)
        self.frame_s = encoder.frame_s * config.projector.spliced_frames
        self.source_languages = config.projector.languages
        adapted = encoder.adapted if config.lora.encoder is None else config.lora.encoder
        adapt(self.encoder, adapted, config.lora)
        adapt(self.llm, config.lora.llm, config.lora)
        groups = [g for g, tags in enumerate(config.projector.groups) for _ in tags]
        self._group_of = torch.tensor(groups)
        self.sources: dict[str, str] | None = None
        self.drafts: Mapping[str, Path] = {}
        self.calibration = Calibration()
        self._prompts = None if tokenizer is None else self._checked(tokenizer, config.prompts)
        self.eval()

    @property
    def name(self) -> str:
        """Name of the family."""
        return NAME

    @property
    def prompts(self) -> Prompts:
        """Prompts and tokenizer. Raises SprachbundError for a model built without one."""
        if self._prompts is None:
            raise SprachbundError("this speech LLM was built without a tokenizer; load it from a directory")
        return self._prompts

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.projector.expand.weight.device

    @property
    def decoder(self) -> LanguageModel:
        """The language model, which writes the text, under the name that a decoder has in every family."""
        return self.llm

    @property
    def capabilities(self) -> Capabilities:
        """Experts of languages in the projector; its attention is not shown, so words get no times."""
        return Capabilities(
            encoder=self.encoder, decoder=self.llm, reads_prefix=True, experts=self, devices=ANY_DEVICE
        )

    @property
    def end_token(self) -> int:
        """Ends a row."""
        return self.prompts.end

    @property
    def max_tokens(self) -> int:
        """Longest row: the prompt behind the speech, and the text."""
        return self.config.max_new_tokens + self._longest(behind=True)

    @property
    def max_window_s(self) -> float:
        """Longest speech that the encoder takes, and that fits beside prompt and text into the language model."""
        return min(float(self.encoder.max_window_s), self._room_s())

    def pairs(self) -> frozenset[tuple[str, str]]:
        """Every language it hears with every language it writes."""
        return frozenset((s, t) for s in self.source_languages for t in self.config.target_languages)

    def train(self, mode: bool = True) -> Self:
        """Frozen parts stay in evaluation mode: no dropout, no masking in what is not learned."""
        super().train(mode)
        self.encoder.eval()
        self.llm.eval()
        return self

    def allowed_groups(self, languages: Sequence[str]) -> Tensor:
        """Boolean (G,): the groups whose experts may work where only these languages are spoken.

        Raises:
            SprachbundError: a language without a group, or too few experts for the router to choose from.
        """
        group_of = {tag: g for g, tags in enumerate(self.config.projector.groups) for tag in tags}
        if not languages:
            raise SprachbundError(
                "no language is declared; name at least one, or leave the languages out for all"
            )
        if missing := [tag for tag in languages if tag not in group_of]:
            raise SprachbundError(
                f"the language {missing[0]!r} has no group of experts in this model; it has groups for "
                f"{described(group_of)}; leave it out, or train a model with a group for it"
            )
        allowed = torch.zeros(len(self.config.projector.groups), dtype=torch.bool, device=self.device)
        allowed[[group_of[tag] for tag in languages]] = True
        return allowed

    def features(self, samples: Sequence[np.ndarray]) -> Features:
        """The encoder's features of utterances given as 16 kHz mono float32 samples.

        Raises:
            SprachbundError: an utterance is longer than the encoder takes, or than fits into the language model.
        """
        longest_s = max((len(s) for s in samples), default=0) / SAMPLE_RATE
        self._check_length(longest_s)
        values, num_frames = self.encoder.features(samples)
        return Features(values=values.to(self.device), num_frames=num_frames.to(self.device))

    def hear(self, features: Features, languages: Sequence[str] | None = None) -> SpeechTokens:
        """Speech tokens and routings of features; `languages` are those that may occur, as declared if None."""
        layers = self.config.projector.encoder_layers
        states, num_states = self.encoder.read(features.values, features.num_frames, layers)
        allowed = None
        if languages is not None:
            allowed = self.allowed_groups(languages).expand(len(states), -1)
        elif features.declared is not None:
            groups = F.one_hot(self.group_of_language(), len(self.config.projector.groups))
            allowed = features.declared.to(groups.device).long() @ groups > 0
        weight = self.projector.expand.weight
        tokens: SpeechTokens = self.projector(states.to(weight.dtype), num_states, allowed)
        return tokens

    def encode(self, features: Features, languages: Sequence[str] | None = None) -> RoutedMemory:
        """Run encoder and projector; the states are what the language model reads.

        Args:
            features: features of the utterances.
            languages: BCP-47 tags of all that may occur in them; the experts of other groups then get nothing. None
                takes what is declared of each utterance, if anything is.

        Raises:
            SprachbundError: a language without a group.
        """
        tokens = self.hear(features, languages)
        probs = tokens.group_probs()
        return RoutedMemory(
            states=tokens.states.to(self.llm.dtype),
            num_frames=tokens.num_tokens,
            group_probs=probs,
            language_log_probs=self._language_log_probs(probs, tokens.num_tokens),
        )

    def language_log_probs(self, memory: Memory) -> Tensor:
        """Log of the share of the router's mass (B, S); languages that share a group share its mass evenly.

        In mixed speech that is how much of it is in each language. A declaration of languages shows in it.
        """
        assert memory.language_log_probs is not None
        return memory.language_log_probs

    def routes(self, memory: Memory, durations_s: Sequence[float] | None = None) -> list[list[Stretch]]:
        """Languages that the router chose in each utterance, as (start_s, end_s, language), equal neighbours joined.

        A group of several languages goes by all their tags, "es+pt": which of them is spoken, the router cannot say.
        """
        return self._stretches(memory, durations_s, 1)

    def spans(self, memory: Memory, durations_s: Sequence[float] | None = None) -> list[list[Stretch]]:
        """Languages that are likely to be spoken and their times: routes without short changes."""
        return self._stretches(memory, durations_s, 2 * round(_SPAN_S / self.frame_s / 2) + 1)

    def suppressed(self, target: Target) -> Tensor:
        """Boolean (V,): special tokens but the end, and rows of the vocabulary that stand for nothing."""
        return self.prompts.not_text.to(self.device)

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        return self.prompts.tokens_to_text(tokens)

    def forward(self, batch: Batch) -> Loss:
        """The loss, as wrappers that watch `forward` expect it."""
        return self.loss(batch)

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the text and the weighted losses of the router; see `objective`."""
        return speech_llm_loss(self, batch)

    def group_of_language(self) -> Tensor:
        """Number of the group (S,) of each source language."""
        return self._group_of.to(self.device)

    def prompt_parts(self, target: Target) -> tuple[list[int], list[int]]:
        """As `SpeechPrefixFamily`."""
        if target.language not in self.config.target_languages:
            raise not_written(target.language, self.config.target_languages)
        return self.prompts.around(replace(target, context=""))

    def _language_log_probs(self, probs: Tensor, num_tokens: Tensor) -> Tensor:
        groups = self.group_of_language()
        share = probs.sum(1) / num_tokens.clamp(min=1)[:, None]
        sizes = groups.bincount(minlength=share.shape[1])
        # A group that may not be chosen has no mass; its log stays a number, so that averages do too.
        return (share / sizes).clamp(min=1e-9).log()[:, groups]

    def _stretches(
        self, memory: Memory, durations_s: Sequence[float] | None, neighbours: int
    ) -> list[list[Stretch]]:
        assert isinstance(memory, RoutedMemory)
        assert memory.num_frames is not None
        names = ["+".join(tags) for tags in self.config.projector.groups]
        lengths = memory.num_frames.tolist()
        ends_s = durations_s or [n * self.frame_s for n in lengths]
        own = [smoothed(probs[:n], neighbours) for probs, n in zip(memory.group_probs, lengths, strict=True)]
        return [stretches(p, names, self.frame_s, end_s) for p, end_s in zip(own, ends_s, strict=True)]

    def _longest(self, *, behind: bool) -> int:
        """Most prompt tokens, those behind the speech alone or all."""
        if self._prompts is None:
            return 0
        targets = [Target(language=t, source=s) for t in self.config.target_languages for s in (t, None)]
        pairs = [self.prompt_parts(target) for target in targets]
        return max(len(after) + (0 if behind else len(before)) for before, after in pairs)

    def _room_s(self) -> float:
        """Seconds of speech that fit into the language model beside the longest prompt and text."""
        room = self.llm.context - self._longest(behind=False) - self.config.max_new_tokens
        return max(0, room) * self.frame_s

    def _check_length(self, longest_s: float) -> None:
        if longest_s <= self.max_window_s + 1 / SAMPLE_RATE:
            return
        room_s = self._room_s()
        if longest_s > room_s and room_s <= self.encoder.max_window_s:
            needed = round(longest_s / self.frame_s)
            raise SprachbundError(
                f"{longest_s:.1f} s of speech take {needed} tokens, which with prompt and text do not fit into the "
                f"language model's {self.llm.context}; the longest that fits is {room_s:.1f} s: cut the speech, or "
                f"lower max_new_tokens ({self.config.max_new_tokens})"
            )
        raise SprachbundError(
            f"an utterance lasts {longest_s:.1f} s, a window of the encoder {self.encoder.max_window_s:g}; cut it"
        )

    def _checked(self, tokenizer: Any, options: PromptOptions) -> Prompts:
        prompts = self._prompts = Prompts(tokenizer, options, self.llm.vocabulary_size)
        if (room_s := self._room_s()) < _LEAST_S:
            raise SprachbundError(
                f"the language model's context of {self.llm.context} tokens leaves {room_s:.1f} s for speech beside a "
                f"prompt of {self._longest(behind=False)} and a text of {self.config.max_new_tokens} tokens; lower "
                "max_new_tokens, or take a model with a longer context"
            )
        return prompts


class SpeechLLMExamples:
    """`sprachbund.data.loading.Examples` of a speech LLM.

    Args:
        model: model whose encoder's features and tokenizer are used.
        languages: languages spoken in the data.
        targets: targets drawn; those of `languages` if None. Of both only what the model writes is.

    Raises:
        SprachbundError: a language without a group of experts, or none that the model writes.
    """

    def __init__(
        self, model: SpeechLLM, languages: Sequence[str], targets: Sequence[str] | None = None
    ) -> None:
        model.allowed_groups(languages)
        self.source_languages = list(languages)
        wanted = languages if targets is None else targets
        self.target_languages = [tag for tag in wanted if tag in model.config.target_languages]
        if not self.target_languages:
            raise SprachbundError(
                f"the model writes none of {', '.join(wanted)}, only {', '.join(model.config.target_languages)}; "
                "add one to the recipe's languages"
            )
        self.prompts, encoder = model.prompts, model.encoder
        self.max_tokens = model.config.max_new_tokens
        self.max_window_s: float | None = model.max_window_s
        self.whole_windows: bool = encoder.whole_windows
        self.frames_per_s: int = encoder.frames_per_s
        self.is_log_mel: bool = encoder.is_log_mel
        self._features = _without_weights(encoder)
        self._numbers = {tag: i for i, tag in enumerate(model.source_languages)}
        self._written = {tag: i for i, tag in enumerate(model.config.target_languages)}

    def number(self, language: str) -> int:
        """Place of a source language among the model's."""
        return self._numbers[language]

    def features(self, samples: np.ndarray, augment: Augment) -> tuple[Tensor, int]:
        """The encoder's features (T, M), and how many are the utterance's; only log-mel can be augmented."""
        values, lengths = self._features.features([samples])
        own = int(lengths[0])
        if not self.is_log_mel:
            return values[0], own
        return torch.cat([augment(values[0, :own]), values[0, own:]]), own

    def transcript(self, text: str) -> None:
        """None: there is no CTC head."""

    def row(self, text: str, source: str | None, target: str) -> Row:
        """Number of the target language and the text's tokens; where nobody speaks the row ends at once.

        Args:
            text: text of the row, in the language `target`.
            source: BCP-47 tag of the language spoken; None where nobody speaks.
            target: BCP-47 tag of the language written.
        """
        return self._written[target], [*self.prompts.text_to_tokens(text.strip()), self.prompts.end]


def _without_weights(encoder: SpeechEncoder) -> SpeechEncoder:
    """The encoder for its features alone: worker processes carry it about."""
    bare = copy.copy(encoder)
    bare._modules = {}
    return bare
