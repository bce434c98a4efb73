"""SimulStreaming's way of writing live text, on any model of this package, to compare the live policies with.

The method is that of Macháček and Polák, "Simultaneous Translation with Offline Speech and LLM Models in CUNI
Submission to IWSLT 2025" (arXiv 2506.17077), as their program https://github.com/ufal/SimulStreaming has it, without
the CIF model of Simul-Whisper (arXiv 2406.10052), which exists for some Whisper models alone:

- While somebody speaks, all audio since the speech began is encoded anew whenever `chunk_s` more has come.
- The decoder goes on greedily behind all text that stands. Its first token in each update is not the end.
- The frame that a token looks at is the one with most attention: of the alignment heads, each standardised over the
  tokens, median-filtered over time, then averaged.
- A token that looks at the last `border_s` is dropped, and the update ends (AlignAtt).
- A token that looks back by more than four seconds has lost its place: the update writes nothing.
- The last word is dropped, since it may be half a word; what is left stands for good.
- When the speech ends, so does the text: the border is 0.08 s, and the last word stays.

Frames of the program's Whisper models have 20 ms; here they have the model's length, and borders are in seconds. Their
voice activity model is replaced by the package's own, so that all policies hear the same stretches. These are never
longer than the program's buffer, so its scrolling is left out. No search but the greedy one is compared.
"""

from dataclasses import dataclass, field
from math import log

import torch
from torch import Tensor

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.spans import Span, SpanStream, VoiceActivity
from sprachbund.decoding.encoding import LanguageQuery, encode_and_identify
from sprachbund.decoding.languages import IdentifiedLanguage, LanguageTracker, read_request
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.recordings import make_target
from sprachbund.decoding.words import MEDIAN_WIDTH, alignment_of, chosen_heads, median_filter
from sprachbund.evaluation.emissions import EmissionLog, EmissionRecorder
from sprachbund.models.base import Family, Memory, Target
from sprachbund.streaming.live import SimulatedClock, in_blocks
from sprachbund.streaming.session import live_spans
from sprachbund.streaming.writing import words_behind
from sprachbund.text.languages import writes_spaces
from sprachbund.util.arrays import Samples

LAST_BORDER_S, REWIND_S, NO_SPEECH = 0.08, 4.0, 0.5


@dataclass(frozen=True, kw_only=True)
class SimulStreaming:
    """Settings of the method.

    Attributes:
        chunk_s: audio between two updates (`--min-chunk-size`, 1.2 s).
        border_s: a token that looks so close to the end has to wait (`--frame_threshold`, 25 frames, 0.5 s).
        median_width: frames of the median filter (7, of 20 ms).
    """

    chunk_s: float = 1.2
    border_s: float = 0.5
    median_width: int = MEDIAN_WIDTH


@dataclass(kw_only=True)
class Utterance:
    """The speech under way.

    Attributes:
        number: counts up over the talk.
        tokens: that stand.
        looked_at_s: where the last token looked; far back at the beginning.
        updated_s: audio of the talk up to here was decoded.
        language: spoken, once text stands.
    """

    number: int
    tokens: list[int] = field(default_factory=list)
    looked_at_s: float = -REWIND_S
    updated_s: float
    language: IdentifiedLanguage | None = None


def write_talk(
    family: Family,
    samples: Samples,
    target: str,
    settings: SimulStreaming,
    *,
    talk: str,
    clock: SimulatedClock,
) -> EmissionLog:
    """What the method writes for a talk, and when.

    Args:
        family: a model with an attention decoder that shows which speech it reads.
        samples: 16 kHz mono (N,).
        target: language wanted, in the model's tag.
        settings: of the method.
        talk: its name.
        clock: of the emissions.
    """
    request = read_request(family, source=None, targets=[target], allowed=None)
    options, recorder = DecodingOptions(), EmissionRecorder(talk, target)
    tracker = LanguageTracker(family.source_languages, request.allowed, options.language_windows)
    stream = SpanStream(live_spans(options.spans, family.max_window_s), activity=VoiceActivity())
    utterance, written = Utterance(number=0, updated_s=-1.0), False

    def update(span: Span, heard: Samples, *, is_last: bool) -> None:
        nonlocal utterance, written
        if utterance.updated_s < span.start_s:
            utterance.updated_s = span.start_s
        if not is_last and span.end_s - utterance.updated_s < settings.chunk_s:
            return
        begins = not utterance.tokens
        with clock.working():
            text = _update(family, utterance, heard, target, tracker, settings, is_last=is_last)
        utterance.updated_s = span.end_s
        if text:
            joined = " " if written and begins and writes_spaces(target) else ""
            recorder.add(utterance.number, f"{joined}{text}", "", stream.duration_s, clock.now_s())
            written = True
        if is_last:
            utterance = Utterance(number=utterance.number + 1, updated_s=span.end_s)

    heard = 0
    for block in in_blocks(samples):
        heard += len(block)
        clock.wait_until(heard / SAMPLE_RATE)
        for span, own in stream.push(block):
            update(span, own, is_last=True)
        if (under_way := stream.under_way()) is not None:
            update(*under_way, is_last=False)
    for span, own in stream.finish():
        update(span, own, is_last=True)
    return recorder.log(len(samples) / SAMPLE_RATE)


def _update(
    family: Family,
    utterance: Utterance,
    samples: Samples,
    target: str,
    tracker: LanguageTracker,
    settings: SimulStreaming,
    *,
    is_last: bool,
) -> str:
    """Decode all audio of the utterance (N,) behind the text that stands; the text that it adds."""
    duration_s = len(samples) / SAMPLE_RATE
    query = LanguageQuery(known=utterance.language, allowed=None, tracker=tracker, ended=is_last)
    encoded = encode_and_identify(family, family.features([samples]), [query], [duration_s])
    language = encoded.languages[0]
    asked = make_target(family, DecodingOptions(timestamps=False), target, language.language)
    tokens = new_tokens(family, encoded.memory, asked, utterance, duration_s, settings, is_last=is_last)
    if not is_last:
        words = words_behind(family, utterance.tokens, tokens, target)
        tokens = tokens[: sum(count for _, count in words[:-1])]
    before = family.decode_text(utterance.tokens)
    utterance.tokens += tokens
    if tokens and utterance.language is None:
        utterance.language = language
    return family.decode_text(utterance.tokens)[len(before) :]


@torch.inference_mode()
def new_tokens(
    family: Family,
    memory: Memory,
    asked: Target,
    utterance: Utterance,
    duration_s: float,
    settings: SimulStreaming,
    *,
    is_last: bool,
) -> list[int]:
    """Tokens behind those that stand, up to the first that looks at the newest audio.

    Args:
        family: the model.
        memory: the utterance, encoded.
        asked: of the text.
        utterance: moves on where its last token looked.
        duration_s: of the audio.
        settings: of the method.
        is_last: whether the utterance has ended.
    """
    frame_s, border_s = alignment_of(family).frame_s, LAST_BORDER_S if is_last else settings.border_s
    prompt = [*family.prompt(asked), *utterance.tokens]
    cache = family.start(memory, rows_per_memory=1, capacity=family.max_tokens, targets=[asked])
    never, read, looks = family.suppressed(asked), prompt, list[Tensor]()
    tokens: list[int] = []
    while len(prompt) + len(tokens) < family.max_tokens:
        layers: list[Tensor] = []
        logits = family.step(torch.tensor([read]), cache, layers)[0]
        looks.append(chosen_heads(family, layers, 1)[0])
        if not tokens:
            first = logits[len(family.prompt(asked)) - 1][None]
            if (silence := family.no_speech_log_prob(first)) is not None and float(silence[0]) > log(
                NO_SPEECH
            ):
                break
        scores = logits[-1].float().masked_fill(never, -torch.inf)
        if not tokens:
            scores[[family.end_token, *family.capabilities.begin_suppressed]] = -torch.inf
        token = int(scores.argmax())
        frame = looked_at(torch.cat(looks, dim=1), round(duration_s / frame_s), settings.median_width)
        looks_at_s = frame * frame_s
        if token == family.end_token:
            break
        if not is_last and utterance.looked_at_s - looks_at_s > REWIND_S:
            utterance.looked_at_s = -REWIND_S
            return []
        utterance.looked_at_s = looks_at_s
        if duration_s - looks_at_s <= border_s:
            break
        tokens.append(token)
        read = [token]
    return tokens


def looked_at(weights: Tensor, num_frames: int, median_width: int) -> int:
    """The frame that the last token looks at.

    Args:
        weights: (H, N, T) attention of the alignment heads at N tokens, prompt included.
        num_frames: that hold audio.
        median_width: of the filter over time.
    """
    deviation, mean = torch.std_mean(weights, dim=1, keepdim=True, correction=0)
    standard = (weights - mean) / deviation.clamp(min=1e-12)
    smooth = median_filter(standard, median_width) if median_width > 1 else standard
    return int(smooth.mean(0)[-1, : max(1, num_frames)].argmax())
