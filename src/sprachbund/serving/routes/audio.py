"""Recordings to text: OpenAI's two routes, into any language of the model."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from sprachbund.decoding.pairs import TRANSCRIBE
from sprachbund.decoding.result import Segment
from sprachbund.serving.bodies import (
    JSON,
    MEDIA_TYPES,
    VERBOSE,
    Events,
    TranscriptionForm,
    TranslationForm,
    body_of,
    event,
)
from sprachbund.serving.files import FileJob, options_of
from sprachbund.serving.refusals import RefusalError, refusal_of
from sprachbund.serving.routes.access import ADMITTED, ServiceOf
from sprachbund.serving.routes.described import ANSWERS, form_body
from sprachbund.serving.service import Service
from sprachbund.serving.uploads import read_form

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
        job, form = await _begun(request, service, kind, stack)
        task = "translate" if isinstance(form, TranslationForm) else TRANSCRIBE
        if not form.stream:
            await _unless_gone(request, _collected(job, service))
            media_type = MEDIA_TYPES.get(form.response_format, "application/json")
            return Response(body_of(job.translation, form, task), media_type=media_type)
        return _OwningStream(_events(job, form, service), stack.pop_all())


async def _begun(
    request: Request, service: Service, kind: type[TranscriptionForm], stack: AsyncExitStack
) -> tuple[FileJob, TranscriptionForm]:
    """The request read, checked and at work; `stack` ends it."""
    client: str = request.state.owner
    service.places.check(client)  # who would be refused after sending a recording is told so before
    form, upload = await stack.enter_async_context(read_form(request, kind))
    if form.stream and form.response_format not in (JSON, VERBOSE):
        raise RefusalError(
            400,
            f"{form.response_format} cannot be streamed; json and verbose_json can",
            param="response_format",
        )
    if form.words and form.response_format != VERBOSE:
        raise RefusalError(400, "times of words come in verbose_json only", param="response_format")
    worker = await stack.enter_async_context(service.store.lease(form.model))
    await stack.enter_async_context(service.places.working(client))
    job = FileJob(
        worker,
        upload,
        form.target_language if isinstance(form, TranslationForm) else TRANSCRIBE,
        form.language,
        options_of(
            languages=form.languages,
            prompt=form.prompt,
            words=form.words,
            batch_size=service.settings.batch_size,
        ),
        max_duration_s=service.settings.limits.max_duration_s,
        allow_damaged=form.allow_damaged,
        activity=service.activity,
        count=service.meters.audio_s.labels("file").inc,
    )
    stack.push_async_callback(job.close)
    await _unless_gone(request, job.start(service.threads))
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


async def _unless_gone(request: Request, work: Any) -> None:
    """Wait for the work, unless the client goes away: then nobody wants it any more."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _OwningStream(StreamingResponse):
    """A stream that lets go of what it needed when it ends, however it ends."""

    def __init__(self, content: AsyncIterator[str], needed: AsyncExitStack) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._needed = needed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        async with self._needed:
            await super().__call__(scope, receive, send)
