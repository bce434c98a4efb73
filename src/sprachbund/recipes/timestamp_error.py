"""How well a model's timestamps tell where speech ends: the one task that no text score sees."""

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from sprachbund.audio.activity import VoiceActivity
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.spans import SpanOptions, iter_speech_spans
from sprachbund.data.manifest import Manifest
from sprachbund.decoding.encoding import encode
from sprachbund.decoding.options import NONE, DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.timestamps import TimestampTokens, timestamp_tokens
from sprachbund.evaluation.hypotheses import Job
from sprachbund.models.family import Family, Target

_MOST = 32  # utterances that are looked at


class TimesWritten(BaseModel):
    """Timestamps in rows that were asked for them.

    Attributes:
        judged: rows.
        ended: rows that end in a timestamp.
        end_error_s: mean distance of that from the end of speech, as voice activity hears it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    judged: int
    ended: int
    end_error_s: float


def times_written(family: Family, manifest: Manifest, jobs: Sequence[Job]) -> TimesWritten | None:
    """Ask for transcripts, or the first target, with timestamps; None for a family that writes none."""
    times = timestamp_tokens(family)
    if times is None:
        return None
    chosen = jobs[:: -(-len(jobs) // _MOST)]
    errors = [_error_s(family, manifest, job, times) for job in chosen]
    ended = [error for error in errors if error is not None]
    return TimesWritten(
        judged=len(chosen), ended=len(ended), end_error_s=round(float(np.mean(ended)), 3) if ended else 0.0
    )


@torch.inference_mode()
def _error_s(family: Family, manifest: Manifest, job: Job, times: TimestampTokens) -> float | None:
    samples = manifest.samples(job.index)
    target = job.source if (job.source, job.source) in family.pairs() else job.targets[0]
    memory = encode(family, family.features([samples]), [job.source])
    asked = Target(language=target, source=job.source, timestamps=True)
    ((found,),) = search(family, memory, [[asked]], DecodingOptions(draft=NONE), [len(samples) / SAMPLE_RATE])
    last = found.tokens[-1] if found.tokens else 0
    return None if last < times.first else abs(times.seconds(last) - _end_of_speech_s(samples))


def _end_of_speech_s(samples: np.ndarray) -> float:
    """End of the last span of speech; of the sound where none is heard."""
    options = SpanOptions()
    spans = [span for span, _ in iter_speech_spans([samples], options, activity=VoiceActivity())]
    whole_s = len(samples) / SAMPLE_RATE
    return min(whole_s, spans[-1].end_s - options.padding_s) if spans else whole_s
