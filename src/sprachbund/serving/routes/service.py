"""Routes of state (health, readiness, metrics), models, live captions and the page."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import FileResponse, PlainTextResponse
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from sprachbund.serving import realtime
from sprachbund.serving.live import PATH
from sprachbund.serving.metrics import CONTENT_TYPE
from sprachbund.serving.models import described_model, languages_of
from sprachbund.serving.routes.access import ADMITTED, ServiceOf, refusals
from sprachbund.serving.schemas import RefusalError
from sprachbund.serving.service import service_of

router = APIRouter(tags=["state"])


# Not in a thread, as plain functions are: they answer also while all threads are busy with uploads.
@router.get("/health")
async def health(service: ServiceOf) -> dict[str, Any]:
    """The process is alive."""
    return {"status": "stopping" if service.draining else "ok"}


@router.get("/ready", responses=refusals(503))
async def ready(service: ServiceOf) -> dict[str, Any]:
    """Requests may be sent."""
    if service.draining or not service.ready:
        state = "being stopped" if service.draining else "loading its model"
        raise RefusalError(503, f"the service is {state}", retry_after_s=5)
    return {"status": "ready", "models": service.store.loaded}


@router.get(
    "/metrics",
    dependencies=[ADMITTED],
    responses=refusals(401, 429, 503),
    response_class=PlainTextResponse,
)
def metrics(service: ServiceOf) -> Response:
    """Counters for Prometheus."""
    return Response(service.meters.text(), headers={"content-type": CONTENT_TYPE})


# Models and their languages.

models_router = APIRouter(prefix="/v1", tags=["models"], dependencies=[ADMITTED])
_REFUSALS = refusals(400, 401, 404, 429, 503)


@models_router.get("/models", responses=refusals(401, 429, 503))
def models(service: ServiceOf) -> dict[str, Any]:
    """All models that requests may name."""
    names = [*service.store.ids, *service.store.aliases]
    return {"object": "list", "data": [described_model(service.store, name) for name in names]}


@models_router.get("/models/{model:path}", responses=_REFUSALS)
def model(model: str, service: ServiceOf) -> dict[str, Any]:
    """One model."""
    service.store.card(model)
    return described_model(service.store, model)


@models_router.get("/languages", responses=_REFUSALS)
async def languages(service: ServiceOf, model: str | None = None) -> dict[str, Any]:
    """Languages that a model hears and writes; loads it if need be. Without a name, the first model."""
    async with service.store.lease(model or service.store.default) as worker:
        return languages_of(worker.model)


# Live captions; docs/serve.md describes the messages.

live_router = APIRouter()


@live_router.websocket(PATH)
async def live(socket: WebSocket) -> None:
    """Open a live session, or resume one."""
    await socket.accept()
    service = service_of(socket)
    await service.sessions.serve(socket, lambda key: service.admit(socket, key))


@live_router.websocket(realtime.PATH)
@live_router.websocket(realtime.TRANSLATIONS_PATH)
async def transcribe_in_realtime(socket: WebSocket) -> None:
    """A transcription session in OpenAI's realtime protocol."""
    await socket.accept(realtime.offered_protocol(socket))
    service = service_of(socket)
    connection = realtime.RealtimeConnection(
        socket, service.sessions, service.settings, service.store.default
    )
    await connection.serve(lambda key: service.admit(socket, key))


# The page and its files; nothing comes from another host.

page_router = APIRouter(include_in_schema=False)
FOLDER = Path(str(files("sprachbund.serving"))) / "page"
SWAGGER_FOLDER = Path(str(files("fastapi_swagger"))) / "resources"
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cache-control": "no-cache",
}
DOCS_HEADERS = {  # icons of Swagger UI are in its stylesheet, as data
    **HEADERS,
    "content-security-policy": f"{HEADERS['content-security-policy']}; img-src 'self' data:",
}


class _Files(StaticFiles):
    """With the page's headers."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.update(HEADERS)
        return response


@page_router.get("/")
def page() -> FileResponse:
    """The page."""
    return _html("index.html", HEADERS)


@page_router.get("/docs")
def docs() -> FileResponse:
    """The routes with their fields, and forms that try them."""
    return _html("docs.html", DOCS_HEADERS)


def _html(name: str, headers: Mapping[str, str]) -> FileResponse:
    if not (FOLDER / name).exists():
        raise RefusalError(404, "the page is not part of this installation; the service is under /v1")
    return FileResponse(FOLDER / name, headers=dict(headers))


def mount(app: FastAPI) -> None:
    """Add the pages to an app."""
    app.include_router(page_router)
    app.mount("/static/swagger", _Files(directory=SWAGGER_FOLDER), name="swagger")
    app.mount("/static", _Files(directory=FOLDER, check_dir=False), name="static")
