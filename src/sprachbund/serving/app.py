"""The app: routes around one service, every error in one form."""

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from sprachbund import __version__
from sprachbund.api import Model
from sprachbund.errors import SprachbundError
from sprachbund.serving.middleware import ID_HEADER, RequestMiddleware
from sprachbund.serving.routes import audio, text
from sprachbund.serving.routes.service import live_router, models_router, mount, router
from sprachbund.serving.schemas import RefusalError, field_fault, refusal_of
from sprachbund.serving.service import Service
from sprachbund.serving.settings import Settings
from sprachbund.streaming.engine import LiveEngine


def create_app(
    settings: Settings | None = None,
    *,
    loader: Callable[[str], Model] | None = None,
    engine_for: Callable[[Model], LiveEngine] | None = None,
    names: Collection[str] | None = None,
) -> FastAPI:
    """An app that serves speech translation.

    Args:
        settings: settings of the service; the caller, who runs the app, decides the address.
        loader: gives a model by its name; by default `sprachbund.load` as the settings say.
        engine_for: makes the engine of a model's live sessions; by default a `LiveEngine`.
        names: hosts that requests may be sent to; None is any.

    Raises:
        SprachbundError: keys that cannot be read, or models of the same name.
    """
    service = Service(settings or Settings(), loader=loader, engine_for=engine_for)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="sprachbund",
        version=__version__,
        summary="Speech to text in any language of a model, on this machine.",
        description="Live captions are a WebSocket at /v1/live, and OpenAI's transcription sessions one at "
        "/v1/realtime; the page of the documentation on the service has their messages.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages come from another host; /docs is a page of this package
        redoc_url=None,
        openapi_url="/v1/openapi.json",
    )
    app.state.service = service
    app.add_middleware(RequestMiddleware, service=service, names=names)
    if service.settings.cors:  # around the other, so that refusals can be read by pages too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.settings.cors,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["retry-after", "x-note", ID_HEADER],
        )
    app.add_exception_handler(SprachbundError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_fields)
    app.add_exception_handler(HTTPException, _refuse_http)
    for part in (audio.router, text.router, models_router, live_router, router):
        app.include_router(part)
    mount(app)
    return app


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    refusal = refusal_of(error)
    return JSONResponse(refusal.body(), refusal.status, refusal.headers())


async def _refuse_fields(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    fault = field_fault(error.errors(), tagged=True)  # by the part of the request
    return await _refuse(request, RefusalError(400, fault.reason, code=fault.kind, param=fault.field))


async def _refuse_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {}).get("Allow", "another method")
    detail = {
        404: f"there is nothing at {request.url.path[:200]}",
        405: f"{request.url.path[:200]} does not take {request.method}; send {allowed}",
    }
    refusal = RefusalError(error.status_code, detail.get(error.status_code, str(error.detail)))
    return JSONResponse(refusal.body(), refusal.status, {**(error.headers or {}), **refusal.headers()})
