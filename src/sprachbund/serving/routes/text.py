"""Text to text, by models that also translate text."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request

from sprachbund.decoding.options import DecodingOptions, check_options
from sprachbund.decoding.texts import TranslatedText, translate_texts
from sprachbund.serving.routes.access import ADMITTED, REFUSALS, ServiceOf, refusals, text_body
from sprachbund.serving.routes.gone import unless_gone
from sprachbund.serving.schemas import RefusalError, TextForm, named_as_sent
from sprachbund.serving.service import Service
from sprachbund.serving.uploads import checked_json
from sprachbund.serving.worker import ModelWorker
from sprachbund.text.languages import parse_language

router = APIRouter(prefix="/v1/text", tags=["texts"], dependencies=[ADMITTED])
_AT_ONCE = DecodingOptions().batch_size
"""Texts that go through the model together; live sessions and recordings have their turn after each."""


@router.post("/translations", responses=REFUSALS | refusals(501), openapi_extra=text_body())
async def translations(request: Request, service: ServiceOf) -> dict[str, Any]:
    """Texts in another language."""
    form = await checked_json(request, TextForm)
    most = service.settings.limits.max_texts
    if not 0 < len(form.texts) <= most:
        raise RefusalError(400, f"{len(form.texts)} texts; send 1 to {most}", param="input")
    most_chars = service.settings.limits.max_text_chars
    if (
        longest := max(map(len, form.texts))
    ) > most_chars:  # none is cut, and a row's cost grows with its square
        raise RefusalError(
            400,
            f"a text of {longest} characters; {most_chars} are the most, send its sentences",
            param="input",
        )
    target, texts = await unless_gone(request, _translate(form, service, request.state.owner))
    data = [{"index": number, "text": text} for number, text in enumerate(texts)]
    return {"object": "list", "model": form.model, "target_language": target, "data": data}


async def _translate(form: TextForm, service: Service, owner: str) -> tuple[str, list[str]]:
    """The tag of the target language, and the texts in it."""
    async with service.limiter.working(owner), service.store.lease(form.model) as worker:
        if worker.model.family.capabilities.text_input is None:
            raise _not_offered(form.model, service)
        known = {tag for pair in worker.model.pairs for tag in pair}
        with named_as_sent({}, form.languages_sent):
            target = parse_language(form.target_language, known)
            source = parse_language(form.source_language, known) if form.source_language else None
        options = DecodingOptions(glossary=form.glossary or None)
        check_options(worker.model.family, options)
        results: list[list[TranslatedText]] = []
        for start in range(0, len(form.texts), _AT_ONCE):
            part = form.texts[start : start + _AT_ONCE]
            call = worker.call(partial(_translated, worker, part, target, source, options))
            translated = await asyncio.wrap_future(call)  # named, or mypy infers the type of += for it
            results += translated
    return target, [result[0].text for result in results]


def _translated(
    worker: ModelWorker, texts: Sequence[str], target: str, source: str | None, options: DecodingOptions
) -> list[list[TranslatedText]]:
    return list(translate_texts(worker.model.family, texts, [target], source, options))


def _not_offered(model: str, service: Service) -> RefusalError:
    """Say which of the models could, as far as they are loaded."""
    others = []
    for name in service.store.loaded:
        worker = service.store.loaded_worker(name)
        if worker is not None and worker.model.family.capabilities.text_input is not None:
            others.append(name)
    could = f"of those loaded, {', '.join(others)} can" if others else "none of those loaded can"
    return RefusalError(
        501,
        f"the model {model} turns speech into text, and cannot translate text; {could}. "
        "Send speech to /v1/audio/translations",
        code="not_offered",
        param="model",
    )
