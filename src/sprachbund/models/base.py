"""The interface of model families, with common and optional parts; searches, commands and the service use no other.

All models satisfy the protocol `Family`. They differ in `capabilities`, one typed field for each, so that nothing has
to be looked up by the name of an attribute.

Shapes: B utterances, T frames, M mel bins, D width, L source languages, G groups of experts, R rows, Q tokens of a
step, V vocabulary.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import numpy as np
from torch import Tensor, nn

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.features import StreamedNormalisation
from sprachbund.data.language_spans import Stretch
from sprachbund.errors import SprachbundError
from sprachbund.models.calibration import Calibration
from sprachbund.models.sharing_plan import SharingPlan
from sprachbund.nn.decoder import DecoderCache
from sprachbund.nn.streaming_conformer import ChunkEncoder, Tier
from sprachbund.nn.transducer import Transducer
from sprachbund.text.languages import described
from sprachbund.util.devices import CPU
from sprachbund.util.options import OptionValueError


@dataclass(frozen=True, kw_only=True)
class Features:
    """Log-mel of several utterances.

    Attributes:
        values: (B, T, M); of families that read tokens, their ids (B, T).
        num_frames: valid frames (B,).
        source_language: the language spoken (B,), by its index among the model's source languages; -1, or None for
            all, where it is not known. Only models split by language ask for it.
        declared: boolean (B, L), the source languages that may occur; None where any may. Only models whose experts
            belong to languages ask for it, see `LanguageExperts`.
    """

    values: Tensor
    num_frames: Tensor
    source_language: Tensor | None = None
    declared: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Output of an encoder.

    Attributes:
        states: (B, T, D).
        num_frames: valid frames (B,); None if all are valid.
        source_language: the language (B,) whose branches the rows went through, given or detected, by its index
            among the model's; None from an encoder that is not split by language.
        language_log_probs: (B, L) as detected on the way; None when the languages were given.
        layer_means: means (B, N + 1, D) over the valid frames, of the states that the N layers of the encoder read and
            of those behind each layer; None of families that give none. Calibrations read them.
    """

    states: Tensor
    num_frames: Tensor | None
    source_language: Tensor | None = None
    language_log_probs: Tensor | None = None
    layer_means: Tensor | None = None

    def select(self, rows: Tensor) -> "Memory":
        """The utterances at the indices `rows` (b,)."""
        return Memory(
            states=self.states[rows],
            num_frames=None if self.num_frames is None else self.num_frames[rows],
            source_language=None if self.source_language is None else self.source_language[rows],
            language_log_probs=None if self.language_log_probs is None else self.language_log_probs[rows],
            layer_means=None if self.layer_means is None else self.layer_means[rows],
        )

    def with_rows(self, rows: Tensor, other: "Memory") -> "Memory":
        """The same with some utterances encoded anew; of a model that is split by language.

        Args:
            rows: indices (b,).
            other: memory of these b utterances. What it lacks stays: languages that were given are not detected again.
        """

        def changed(own: Tensor | None, new: Tensor | None) -> Tensor | None:
            return own if own is None or new is None else own.index_copy(0, rows, new)

        return Memory(
            states=self.states.index_copy(0, rows, other.states),
            num_frames=changed(self.num_frames, other.num_frames),
            source_language=changed(self.source_language, other.source_language),
            language_log_probs=changed(self.language_log_probs, other.language_log_probs),
            layer_means=changed(self.layer_means, other.layer_means),
        )


@dataclass(frozen=True, kw_only=True)
class Target:
    """A request to the decoder, for one row.

    Attributes:
        language: BCP-47 tag of the text wanted.
        source: BCP-47 tag of the speech, None when unknown.
        context: text that came before, or a glossary; shown to the model where the family has room for it.
        timestamps: whether the row is to hold timestamp tokens (families that have them).
        prefix: tokens that the text begins with; searches go on from there, and give what comes after.
    """

    language: str
    source: str | None = None
    context: str = ""
    timestamps: bool = False
    prefix: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TimestampTokens:
    """The part of a vocabulary that means times: token `first + n` is n * `step_s` seconds.

    Attributes:
        first: the first of them.
        stop: the first token behind them, which is text or special; the size of the vocabulary where they end it.
        step_s: seconds from one to the next.
    """

    first: int
    stop: int
    step_s: float

    def __contains__(self, token: int) -> bool:
        return self.first <= token < self.stop

    def seconds(self, token: int) -> float:
        """Time that a timestamp token stands for."""
        return (token - self.first) * self.step_s

    def last_within(self, duration_s: float) -> int:
        """Token of the latest time inside `duration_s`."""
        return self.first + int(duration_s / self.step_s + 1e-6)


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """The source of the times of words: the cross-attention of a decoder, or the frames at which the others write.

    Attributes:
        frame_s: seconds of a frame that the decoder reads; not the encoder's where frames are averaged.
        heads: (layer, head) pairs that follow the speech; empty where none are known, then all of the upper half count.
    """

    frame_s: float
    heads: tuple[tuple[int, int], ...] = ()


class CtcScorer(Protocol):
    """A head that scores all texts of an utterance at once.

    Attributes:
        blank: id of the blank.
    """

    blank: int

    def ctc_log_probs(self, memory: Memory, targets: Sequence[Sequence[Target]]) -> Tensor:
        """Log-probabilities (R, T, V), one row for each target of each memory, in order."""
        ...


@dataclass(frozen=True, kw_only=True)
class JointCtc:
    """CTC beside an attention decoder, in one search.

    Attributes:
        head: scores texts by CTC.
        weight: weight of the CTC prefix score, 0 to 1; the decoder's is the rest.
    """

    head: CtcScorer
    weight: float


@dataclass(frozen=True, kw_only=True)
class StreamingTransducer:
    """A transducer whose encoder reads chunk by chunk: it writes while somebody speaks, and its text is final.

    Attributes:
        encoder: encoder whose state goes from chunk to chunk.
        transducer: transducer that writes the text.
        front_end: normalisation of the log-mel features.
    """

    encoder: ChunkEncoder
    transducer: Transducer
    front_end: StreamedNormalisation

    def tier_of(self, right_context: int) -> Tier:
        """The tier of so many frames ahead. Raises SprachbundError for one that the model was not trained for."""
        known = {tier.right: tier for tier in self.encoder.tiers}
        if right_context not in known:
            raise SprachbundError(
                f"there is no tier of {right_context} frames ahead; this model was trained for "
                f"{', '.join(map(str, sorted(known)))} frames of 80 ms"
            )
        return known[right_context]


class FrameFrontEnd(Protocol):
    """A front end for the sound of one stream, which computes the frames that a `FrameDecoder` encodes."""

    def push(self, samples: np.ndarray) -> Tensor:
        """Take the next samples (N,) at 16 kHz, and return the frames (T, ...) that they complete."""
        ...

    def finish(self) -> Tensor:
        """End the sound, and return the frames (T, ...) left, with silence for as long as the text is behind."""
        ...


class FrameState(Protocol):
    """State of rows (R,) of a `FrameDecoder`; its size has a bound, however long they go on.

    A state is never changed in place; decoding from it returns another one.
    """

    def take(self, rows: Tensor) -> Self:
        """The rows at the indices `rows` (r,)."""
        ...

    @classmethod
    def stack(cls, states: Sequence[Self]) -> Self:
        """Rows of several states, one state behind the other; they may differ in the frames that they have read."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state, to be kept or moved; ready for `safetensors.torch.save`."""
        ...

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The state that gave `tensors`. Raises ValueError naming what is missing or too much."""
        ...


@dataclass(frozen=True, kw_only=True)
class FrameTokens:
    """Output of a `FrameDecoder`, one token for each frame.

    Attributes:
        tokens: (R, T).
        log_probs: (R, T) log-probability of each; 0 for tokens that were not chosen, such as those of a prompt.
    """

    tokens: Tensor
    log_probs: Tensor


class FrameDecoder(Protocol):
    """A decoder that writes one token for every frame of speech as it is heard: a piece of text, or a token for none.

    Such models learn text and speech as two streams side by side, the text some frames behind (delayed streams
    modeling, arXiv 2509.08753). A frame goes through a front end, which every stream has for itself, the encoder and
    the decoder. Each may be given frames in pieces of any size, and pieces give what the whole gives: a recording is
    one piece. Rows do not influence each other.

    Attributes:
        frame_s: seconds of a frame.
        lead: frames of silence that the front end puts before the speech.
        delay: frames that the text is behind: the token of frame t is about frame t - `lead` - `delay` of the speech.
    """

    frame_s: float
    lead: int
    delay: int

    def front_end(self) -> FrameFrontEnd:
        """Front end of a new stream."""
        ...

    def start_frames(self, num_rows: int) -> FrameState:
        """The state of rows in front of their first frame."""
        ...

    def encode_frames(self, frames: Tensor, state: FrameState) -> tuple[Tensor, FrameState]:
        """Encode the next frames (R, T, ...) of every row.

        Args:
            frames: output of the front ends. A row with fewer left than T may be filled up with anything, but nothing
                can go on from its state.
            state: state of the R rows, made by this decoder; only what the encoder keeps is read and moved on.

        Returns:
            States (R, T, D), and the state behind them.
        """
        ...

    def write_frames(self, states: Tensor, state: FrameState) -> tuple[FrameTokens, FrameState]:
        """Write one token for each of the next encoded frames (R, T, D) of every row, the likeliest.

        Args:
            states: output of `encode_frames`, filled up in the same way.
            state: state of the R rows; only what the decoder keeps is read and moved on.
        """
        ...

    def is_text(self, tokens: Tensor) -> Tensor:
        """Boolean (...): whether each of the tokens (...) is text, and neither padding nor a mark."""
        ...


class TranscriptHead(Protocol):
    """A CTC head beside an attention decoder that transcribes; its texts are compared with the decoder's."""

    def transcript_log_probs(self, memory: Memory) -> Tensor:
        """Log-probabilities (B, T, V) of every frame; 0 is the blank."""
        ...

    def decode_transcript(self, tokens: Sequence[int]) -> str:
        """Text of its tokens."""
        ...


class LanguageExperts(Protocol):
    """Experts that belong to groups of languages, and a router that chooses among them frame by frame."""

    def allowed_groups(self, languages: Sequence[str]) -> Tensor:
        """Boolean (G,): the groups whose experts may work where only these languages are spoken.

        Raises:
            SprachbundError: a language without a group, or no language.
        """
        ...

    def routes(self, memory: Memory, durations_s: Sequence[float] | None = None) -> list[list[Stretch]]:
        """Routes of each utterance, in the order of time: stretches and the language that the router chose for each."""
        ...

    def spans(self, memory: Memory, durations_s: Sequence[float] | None = None) -> list[list[Stretch]]:
        """Languages that are likely to be spoken and their times: routes without short changes."""
        ...


class TextInput(Protocol):
    """The further interface of a family that reads text as well as speech."""

    def text_features(self, texts: Sequence[str]) -> Features:
        """Features of texts for the encoder, in place of `Family.features` of speech."""
        ...


class TokenOffsets(Protocol):
    """A family that reads text, and knows which part of it each token stands for."""

    def source_offsets(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Character range of the text that each frame of `TextInput.text_features` stands for.

        Frames that stand for no part of it, such as that of the language, have (0, 0).
        """
        ...


class FixedWindow(Protocol):
    """A family that fills speech up with silence to a whole window, unless it is set to encode the real length.

    Attributes:
        real_length: True encodes speech at its own length.
    """

    real_length: bool


@dataclass(frozen=True, kw_only=True)
class Translator:
    """The second half of a cascade, which translates the transcripts of the first.

    Attributes:
        family: model that reads texts.
        languages: languages spoken that it can read, each with its own tag for it.
    """

    family: "Family"
    languages: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """Optional parts of one model beyond `Family`; None, or empty, where it has none.

    A model writes by one of `transducer`, `ctc` and `frame_decoder`; one without them by its attention decoder, with
    `start` and `step`.

    Attributes:
        encoder: the module that `encode` runs; engines put a faster one in its place.
        decoder: the module that `step` runs; engines put a faster one in its place, some drafts read inside.
        transducer: transducer, where one writes the text frame by frame.
        ctc: CTC head, where one writes the text by itself.
        joint_ctc: CTC head that scores the texts of the attention decoder too, with its weight.
        transcript_head: a CTC head that transcribes, in a model that writes all of its languages otherwise too.
        streaming: encoder and transducer of a model that writes while somebody speaks.
        frame_decoder: decoder that writes one token for every frame, while somebody speaks.
        fuse_language: function from states (R, T, D) of rows and their targets to the states that the transducer reads,
            in a model that is given the language behind its encoder.
        timestamps: tokens for times, of a model that was trained to write them.
        alignment: source of the times of words.
        hears_language: whether its encoder also tells the language spoken, at next to no cost, in a head that was
            trained to; a language that the caller named is compared with it then.
        language_from_text: whether it transcribes without being given the language and without identifying it; the
            language is then identified from its text.
        reads_context: whether `Target.context`, a prompt of the caller's, is shown to the model before the speech;
            `prompt` returns the tokens behind the speech, which do not depend on it.
        reads_prefix: whether its decoder is a language model that reads speech, or a text to translate, in front of
            what it writes, and not by cross-attention.
        begin_suppressed: tokens that are never written first.
        encode_text: function from a text to its tokens as the model would write it, for drafts made of texts.
        words_only: whether its vocabulary has no full stop, so that it writes no punctuation;
            `sprachbund.models.punctuation` restores it.
        sharing_plan: sharing plan of a model that is split by language.
        experts: router of a model whose experts belong to languages.
        text_input: input of texts, of a model that reads them too.
        text_encoder: the module that reads texts, where it is another one than `encoder`.
        follows_requests: whether it is a language model that is asked to translate: it takes a glossary, as
            `Target.context`, and may answer instead of translating.
        token_offsets: positions in the text, of a model whose frames of a text stand for known parts of it.
        fixed_window: window that a model fills speech up to.
        translator: translator of a cascade.
        as_stored: whether its weights are those of 16 bits that its file has, until an engine computes with them in 32.
        devices: kinds of devices that it computes on, as in `sprachbund.util.devices.ANY_DEVICE`.
    """

    encoder: nn.Module | None = None
    decoder: nn.Module | None = None
    transducer: Transducer | None = None
    ctc: CtcScorer | None = None
    joint_ctc: JointCtc | None = None
    transcript_head: TranscriptHead | None = None
    streaming: StreamingTransducer | None = None
    frame_decoder: FrameDecoder | None = None
    fuse_language: Callable[[Tensor, Sequence["Target"]], Tensor] | None = None
    timestamps: TimestampTokens | None = None
    alignment: Alignment | None = None
    hears_language: bool = False
    language_from_text: bool = False
    reads_context: bool = False
    reads_prefix: bool = False
    begin_suppressed: tuple[int, ...] = ()
    encode_text: Callable[[str], list[int]] | None = None
    words_only: bool = False
    sharing_plan: SharingPlan | None = None
    experts: LanguageExperts | None = None
    text_input: TextInput | None = None
    text_encoder: nn.Module | None = None
    follows_requests: bool = False
    token_offsets: TokenOffsets | None = None
    fixed_window: FixedWindow | None = None
    translator: "Translator | None" = None
    as_stored: bool = False
    devices: tuple[str, ...] = (CPU,)

    @property
    def writes_by_frames(self) -> bool:
        """Whether the frames of the encoder determine the text and its times, without an attention decoder."""
        return self.transducer is not None or self.ctc is not None or self.frame_decoder is not None


@runtime_checkable
class Family(Protocol):
    """A speech-to-text model.

    Attributes:
        drafts: files of the drafts in its model directory, by name; `sprachbund.models.io.load` fills it.
        calibration: probabilities of what it does not understand and of ends of turns, where it was calibrated; filled
            likewise.
    """

    drafts: Mapping[str, Path]
    calibration: Calibration

    @property
    def name(self) -> str:
        """Name of the family."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """Optional parts of this model.

        It is made of the model's present parts at each call, so that a copy with other parts shows its own.
        """
        ...

    @property
    def source_languages(self) -> tuple[str, ...]:
        """BCP-47 tags of the languages that it hears, in the order of `language_log_probs`."""
        ...

    @property
    def end_token(self) -> int:
        """Token that ends a row."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest row in tokens, the prompt included."""
        ...

    @property
    def max_window_s(self) -> float:
        """Seconds of the longest speech that it takes at once."""
        ...

    @property
    def frame_s(self) -> float:
        """Seconds of a memory frame."""
        ...

    def pairs(self) -> frozenset[tuple[str, str]]:
        """Every (source, target) the model knows; (x, x) is transcription of x."""
        ...

    def features(self, samples: Sequence[np.ndarray]) -> Features:
        """Log-mel of utterances given as 16 kHz mono float32 samples."""
        ...

    def encode(self, features: Features) -> Memory:
        """Run the encoder; one that is split by language identifies the languages that are not given."""
        ...

    def language_log_probs(self, memory: Memory) -> Tensor:
        """Log-probabilities (B, len(source_languages)) of the language spoken."""
        ...

    def prompt(self, target: Target) -> list[int]:
        """Tokens that a row starts with. Raises SprachbundError for a pair the model does not know."""
        ...

    def start(
        self,
        memory: Memory,
        *,
        rows_per_memory: int = 1,
        capacity: int | None = None,
        targets: Sequence[Target] | None = None,
    ) -> DecoderCache:
        """An empty cache for R rows.

        Args:
            memory: memory of B utterances.
            rows_per_memory: rows for each utterance; row r reads memory r // rows_per_memory.
            capacity: most tokens of a row; `max_tokens` if None.
            targets: targets of the R rows; only a decoder that is split by language needs them.
        """
        ...

    def step(self, tokens: Tensor, cache: DecoderCache, weights: list[Tensor] | None = None) -> Tensor:
        """Logits (R, Q, V) after each of `tokens` (R, Q).

        Args:
            tokens: (R, Q), which follow what the cache holds.
            cache: cache of the R rows; the tokens are added to it.
            weights: each layer's cross-attention weights (R, H, Q, T) are appended to it, if given.
        """
        ...

    def suppressed(self, target: Target) -> Tensor:
        """Boolean (V,): tokens never to be emitted for this target (special tokens, other languages' tags)."""
        ...

    def no_speech_log_prob(self, logits: Tensor) -> Tensor | None:
        """Log-probability (R,) of "no speech" read off the first step's logits (R, V); None without such a token."""
        ...

    def decode_text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        ...


def use_real_length(family: Family) -> None:
    """Let a family encode speech at its own length from now on.

    Raises:
        OptionValueError: the family has no window to leave, and always does so.
    """
    if (window := family.capabilities.fixed_window) is None:
        raise OptionValueError(
            "real_length",
            True,
            "leave it out",
            reason=f"which is for models that fill speech up to a window, as whisper models do, and {family.name} "
            "always encodes speech at its real length",
        )
    window.real_length = True


def use_tier(family: Family, right_context: int) -> None:
    """Let a family that streams hear whole recordings as a live stream of a tier does, from now on.

    Args:
        family: any family.
        right_context: frames of 80 ms that a chunk waits for.

    Raises:
        OptionValueError: the family does not stream.
        SprachbundError: it was not trained for that tier.
    """
    if (streaming := family.capabilities.streaming) is None:
        raise OptionValueError(
            "right_context",
            right_context,
            "leave it out",
            reason=f"which is for transducers that stream, and {family.name} hears a recording as a whole",
        )
    streaming.encoder.tier = streaming.tier_of(right_context)


# The result of a family's loss.

CTC, LANGUAGE = "ctc", "language"
"""Names of the heads that several families have."""


@dataclass(frozen=True)
class HeadLoss:
    """Loss of a head beside the one that writes the text.

    Attributes:
        total: the sum over what is counted, without a gradient.
        count: number of things that the log's mean is over: transcript tokens of CTC, utterances of the language head.
    """

    total: Tensor
    count: int


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Sums over what was counted, so that parts of a batch add up to the whole.

    Attributes:
        total: loss to differentiate: the sum over target tokens plus the weighted sums of the other heads, each brought
            to the same scale of a target token.
        attention: cross-entropy of the head that writes the text, summed over target tokens: of the decoder, or minus
            the log-probability that a transducer gives the text; it ranks checkpoints.
        num_tokens: target tokens counted.
        heads: losses of the heads that the family has, by name.
        parts: other sums over target tokens, by the name that they have in the log.
        counts: counts of events, by the name that they have in the log.
    """

    total: Tensor
    attention: Tensor
    num_tokens: int
    heads: Mapping[str, HeadLoss] = field(default_factory=dict)
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of_text(
        cls,
        total: Tensor,
        num_tokens: int,
        *,
        attention: Tensor | None = None,
        parts: Mapping[str, Tensor] | None = None,
    ) -> "Loss":
        """The loss of the head that writes the text, where there are no other heads or they are added later.

        Args:
            total: loss to differentiate.
            num_tokens: target tokens counted.
            attention: cross-entropy of the head that writes the text; the total if None.
            parts: other sums, by name.
        """
        return cls(
            total=total,
            attention=total if attention is None else attention,
            num_tokens=num_tokens,
            parts=parts or {},
        )


@runtime_checkable
class PartlyTrained(Protocol):
    """A model whose loss leaves some parameters without a gradient.

    Several processes exchange gradients of all parameters that require one, so those without one have
    to be known before. In all other models every batch gives every parameter a gradient.
    """

    @property
    def untrained(self) -> Sequence[nn.Module]:
        """Parts that no batch trains, by the model's own options, such as a head whose loss has no weight."""
        ...

    @property
    def has_unused_parameters(self) -> bool:
        """Whether there are batches, or shares of one, that leave further parts without a gradient.

        Branches of split layers and experts are known to the training loop and need not be named.
        """
        ...


@runtime_checkable
class LearnsFromModels(Protocol):
    """A training of a model that learns from others, which are not trained and are no part of its weights."""

    @property
    def learns_from(self) -> Sequence[nn.Module]:
        """The models that it learns from, such as a teacher."""
        ...


def hears_nothing(family: Family) -> SprachbundError:
    """The error of `features` of a family that reads texts alone."""
    return SprachbundError(
        f"the model {family.name} reads text and hears nothing; give it a text, or make it the second half of a "
        "cascade, behind a model that transcribes"
    )


def not_written(language: str, written: Iterable[str]) -> SprachbundError:
    """The error of `prompt` for a language that a family does not write.

    Args:
        language: BCP-47 tag of the language wanted.
        written: tags of those that the model writes.
    """
    return SprachbundError(f"this model does not write {language!r}; it writes {described(written)}")


def check_window(samples: Sequence[np.ndarray], window_s: float) -> None:
    """Check that utterances fit into a model's window.

    Args:
        samples: (N,) at 16 kHz of each.
        window_s: longest speech at once.

    Raises:
        SprachbundError: an utterance is longer.
    """
    longest = max((len(s) for s in samples), default=0)
    if longest > round(window_s * SAMPLE_RATE):
        raise SprachbundError(
            f"an utterance lasts {longest / SAMPLE_RATE:.1f} s, a window {window_s:g}; cut it"
        )


def equal_log_probs(memory: Memory, num_languages: int) -> Tensor:
    """`language_log_probs` of a family that does not separate languages by the speech: all are equal, (B, L)."""
    shape = (memory.states.shape[0], num_languages)
    return memory.states.new_zeros(shape).float().log_softmax(dim=-1)
