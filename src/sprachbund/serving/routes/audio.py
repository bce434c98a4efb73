"""Recordings to text: OpenAI's two routes, into any language of the model."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sprachbund.audio.constants import SAMPLE_RATE, WINDOW_S
from sprachbund.audio.load import AudioSource, open_audio
from sprachbund.audio.sandbox import DecodingLimits
from sprachbund.audio.spans import VoiceActivity
from sprachbund.decoding.long_form import LongForm, finish_translation
from sprachbund.decoding.options import TRANSCRIBE, DecodingOptions
from sprachbund.decoding.result import Segment, Translation
from sprachbund.models.punctuation import BUNDLED
from sprachbund.serving.routes.access import ADMITTED, ANSWERS, ServiceOf, form_body
from sprachbund.serving.routes.gone import unless_gone
from sprachbund.serving.schemas import (
    JSON,
    MEDIA_TYPES,
    VERBOSE,
    Events,
    RefusalError,
    TranscriptionForm,
    TranslationForm,
    body_of,
    event,
    named_as_sent,
    refusal_of,
    warnings_of,
)
from sprachbund.serving.service import Service
from sprachbund.serving.uploads import Upload, read_form
from sprachbund.serving.worker import AbandonedError, ModelWorker
from sprachbund.util.arrays import Samples

# A recording of a request: read and cut in one thread, computed in the model's, segments queued for the event loop.


class BoundedAudio(AudioSource):
    """Audio that ends with an error when it turns out longer than allowed, whatever its header said.

    It is decoded in a process that can do nothing else: see `sprachbund.audio.isolated`.

    Args:
        upload: the recording.
        max_duration_s: longest that is allowed.
        abandoned: stops the reading when set.
        count: called with the seconds read, block by block.

    Raises:
        RefusalError: 413, at once where the header says so.
        SprachbundError: the upload is not audio.
    """

    def __init__(
        self,
        upload: Upload,
        max_duration_s: float,
        abandoned: threading.Event,
        count: Callable[[float], None],
    ) -> None:
        most_s = (
            max_duration_s + 2 * WINDOW_S
        )  # what goes a little over is refused here, with the right status
        limits = DecodingLimits(duration_s=most_s)
        self._whole = open_audio(upload.file, name=upload.name, untrusted=True, limits=limits)
        super().__init__(upload.name, self._whole.duration_s, self._whole.warnings)
        self._most_s, self._abandoned, self._count = max_duration_s, abandoned, count
        if self.duration_s is not None and self.duration_s > max_duration_s:
            raise self._too_long(self.duration_s, "lasts")

    def blocks(self, block_s: float = WINDOW_S, *, start_s: float = 0.0) -> Iterator[Samples]:
        """Blocks of audio, up to the limit."""
        read_s = 0.0
        for block in self._whole.blocks(block_s, start_s=start_s):
            if self._abandoned.is_set():
                raise AbandonedError
            read_s += len(block) / SAMPLE_RATE
            if read_s > self._most_s:
                raise self._too_long(read_s, "goes on after")
            self._count(len(block) / SAMPLE_RATE)
            yield block

    def _too_long(self, duration_s: float, how: str) -> RefusalError:
        return RefusalError(
            413,
            f"{self.name} {how} {duration_s:.0f} s, and {self._most_s:.0f} s are the most; cut it",
            code="audio_too_long",
            param="file",
        )


class FileJob:
    """A recording being translated into one language: iterate for its segments, then ask for the `translation`.

    Args:
        worker: worker of the model.
        upload: the recording, open as long as the job is.
        target: language wanted, or "transcribe".
        source: language spoken; None identifies it.
        options: decoding options.
        max_duration_s: longest recording that is allowed.
        allow_damaged: whether what can be read of a damaged recording is enough.
        activity: the voice activity detector, shared.
        count: called with the seconds of audio read.

    Attributes:
        duration_s: seconds of the recording, as far as it is known.
    """

    def __init__(
        self,
        worker: ModelWorker,
        upload: Upload,
        target: str,
        source: str | None,
        options: DecodingOptions,
        *,
        max_duration_s: float,
        allow_damaged: bool,
        activity: VoiceActivity,
        count: Callable[[float], None],
    ) -> None:
        self._allow_damaged = allow_damaged
        self._worker, self._target, self._source, self._options = worker, target, source, options
        self._upload, self._max_duration_s, self._activity, self._count = (
            upload,
            max_duration_s,
            activity,
            count,
        )
        self._abandoned = threading.Event()
        self._opening: asyncio.Future[LongForm] | None = None
        self._reading: asyncio.Future[None] | None = None
        self._results: asyncio.Queue[Segment | Translation | BaseException] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._work: LongForm | None = None
        self._translation: Translation | None = None

    async def start(self, executor: Executor) -> None:
        """Begin, in a thread of `executor`. Raises what is wrong with the request, before any segment."""
        self._opening = self._loop.run_in_executor(executor, self._open)
        self._work = await asyncio.shield(self._opening)
        self._reading = self._loop.run_in_executor(executor, self._run, self._work)

    @property
    def duration_s(self) -> float | None:
        """Seconds of the recording; those that its header states until it is read to the end."""
        return None if self._work is None else self._work.duration_s

    @property
    def translation(self) -> Translation:
        """The whole, after the last segment."""
        assert self._translation is not None
        return self._translation

    async def __aiter__(self) -> AsyncIterator[Segment]:
        while True:
            result = await self._results.get()
            if isinstance(result, BaseException):
                raise result
            if isinstance(result, Translation):
                self._translation = result
                self._refuse_damage()
                return
            yield result

    def _refuse_damage(self) -> None:
        """Half a recording is not taken for the whole, unless the client wants what there is."""
        assert self._work is not None
        damage = self._work.audio_warnings
        if damage and not self._allow_damaged:
            raise RefusalError(
                422,
                f"{'; '.join(damage)}; send the whole file, or allow_damaged=true for what can be read",
                code="damaged_audio",
                param="file",
            )

    async def close(self) -> None:
        """Stop the reading, and wait until nothing touches the recording any more."""
        self._abandoned.set()
        self._worker.notify()
        threads = [thread for thread in (self._opening, self._reading) if thread is not None]
        await asyncio.gather(*threads, return_exceptions=True)

    def _open(self) -> LongForm:
        audio = BoundedAudio(self._upload, self._max_duration_s, self._abandoned, self._count)
        model, targets = self._worker.model.family, [self._target]
        # In the model's thread: a draft beside the model may have to be loaded.
        return self._worker.call(
            lambda: LongForm(
                model,
                audio,
                targets,
                self._source,
                self._options,
                activity=self._activity,
                compute=partial(self._worker.compute, abandoned=self._abandoned),
                drafts=self._worker.drafts(),
            )
        ).result()

    def _run(self, work: LongForm) -> None:
        try:
            segments = []
            for segment in work:
                segments.append(segment)
                self._put(segment)
            self._put(finish_translation(work, work.targets[0], segments))
        except BaseException as error:
            self._put(error)

    def _put(self, result: Segment | Translation | BaseException) -> None:
        self._loop.call_soon_threadsafe(self._results.put_nowait, result)


def options_of(
    *,
    languages: Sequence[str],
    prompt: str | None,
    words: bool,
    digits: bool,
    punctuate: bool,
    temperature: float,
    batch_size: int,
    glossary: str | None = None,
    hot_words: Sequence[str] = (),
) -> DecodingOptions:
    """Decoding options of a request.

    Args:
        languages: tags of the languages that may be spoken; empty for all.
        prompt: context or glossary.
        words: whether words get timestamps.
        digits: whether numbers are written in digits.
        punctuate: whether the punctuator of the package restores punctuation and capitals.
        temperature: 0 is greedy.
        batch_size: spans in a batch at most.
        glossary: terms and their translations.
        hot_words: words that the search prefers.
    """
    return DecodingOptions(
        allowed_languages=tuple(languages) or None,
        prompt=prompt,
        glossary=glossary or None,
        hot_words=tuple(hot_words) or None,
        word_timestamps=words,
        digits=digits,
        punctuate=BUNDLED if punctuate else None,
        temperature=(temperature,),
        batch_size=batch_size,
    )


router = APIRouter(prefix="/v1/audio", tags=["recordings"], dependencies=[ADMITTED])


@router.post("/transcriptions", responses=ANSWERS, openapi_extra=form_body(TranscriptionForm))
async def transcriptions(request: Request, service: ServiceOf) -> Response:
    """Text in the language spoken."""
    return await _answer(request, service, TranscriptionForm)


@router.post("/translations", responses=ANSWERS, openapi_extra=form_body(TranslationForm))
async def translations(request: Request, service: ServiceOf) -> Response:
    """Text in another language: English, or the `target_language` asked for."""
    return await _answer(request, service, TranslationForm)


async def _answer(request: Request, service: Service, kind: type[TranscriptionForm]) -> Response:
    async with AsyncExitStack() as stack:
        job, form = await _start_job(request, service, kind, stack)
        task = "translate" if isinstance(form, TranslationForm) else TRANSCRIBE
        if not form.stream:
            await unless_gone(request, _collected(job, service))
            media_type = MEDIA_TYPES.get(form.response_format, "application/json")
            body = body_of(job.translation, form, task)
            headers = _note_headers(warnings_of(job.translation, form))
            return Response(body, media_type=media_type, headers=headers)
        return _OwningStream(_events(job, form, service), stack.pop_all(), _note_headers(form.notes))


def _note_headers(notes: Sequence[str]) -> dict[str, str]:
    """Notes and warnings, in ASCII, since not every format has a place for them in its body."""
    return {"x-note": "; ".join(notes).encode("ascii", "backslashreplace").decode()} if notes else {}


async def _start_job(
    request: Request, service: Service, kind: type[TranscriptionForm], stack: AsyncExitStack
) -> tuple[FileJob, TranscriptionForm]:
    """Read and check the request and start its job, which `stack` ends."""
    client: str = request.state.owner
    service.limiter.check(client)  # refuse before the recording is uploaded, not after
    form, upload = await stack.enter_async_context(read_form(request, kind))
    if form.stream and form.response_format not in (JSON, VERBOSE):
        raise RefusalError(
            400,
            f"{form.response_format} cannot be streamed; json and verbose_json can",
            param="response_format",
        )
    if form.words and form.response_format != VERBOSE:
        raise RefusalError(400, "times of words come in verbose_json only", param="response_format")
    if form.log_probs and form.response_format != JSON:
        raise RefusalError(400, "log-probabilities come in json only", param="include[]")
    worker = await unless_gone(request, stack.enter_async_context(service.store.lease(form.model)))
    await unless_gone(request, stack.enter_async_context(service.limiter.working(client)))
    with named_as_sent(form.sent, form.languages_sent):
        job = FileJob(
            worker,
            upload,
            form.target_language if isinstance(form, TranslationForm) else TRANSCRIBE,
            form.language,
            options_of(
                languages=form.languages,
                prompt=form.prompt_for(worker.model.family),
                glossary=form.glossary,
                hot_words=form.hot_words,
                words=form.words or form.log_probs,
                digits=form.digits,
                punctuate=form.punctuate,
                temperature=form.temperature_for(worker.model.family),
                batch_size=service.settings.batch_size,
            ),
            max_duration_s=service.settings.limits.max_duration_s,
            allow_damaged=form.allow_damaged,
            activity=service.activity,
            count=service.meters.audio_s.labels("file").inc,
        )
        stack.push_async_callback(job.close)
        await unless_gone(request, job.start(service.threads))
    return job, form


async def _collected(job: FileJob, service: Service) -> None:
    """Work to the end."""
    async for _ in _timed(job, service):
        pass


async def _timed(job: FileJob, service: Service) -> AsyncIterator[Segment]:
    """The segments; how long the first took is counted."""
    began: float | None = time.monotonic()
    async for segment in job:
        if began is not None:
            service.meters.first_text_s.observe(time.monotonic() - began)
            began = None
        yield segment


async def _events(job: FileJob, form: TranscriptionForm, service: Service) -> AsyncIterator[str]:
    events = Events(form)
    try:
        async for segment in _timed(job, service):
            for text in events.of_segment(segment, job.duration_s):
                yield text
        for text in events.of_end(job.translation):
            yield text
    except Exception as error:
        refusal = refusal_of(error)
        body: Any = refusal.body()
        body["error"]["status"] = refusal.status
        yield f"event: error\n{event(body)}"


class _OwningStream(StreamingResponse):
    """A stream that lets go of what it needed when it ends, however it ends."""

    def __init__(
        self, content: AsyncIterator[str], needed: AsyncExitStack, headers: Mapping[str, str]
    ) -> None:
        own = {"cache-control": "no-store", "x-accel-buffering": "no", **headers}
        super().__init__(content, media_type="text/event-stream", headers=own)
        self._needed = needed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        async with self._needed:
            await super().__call__(scope, receive, send)
