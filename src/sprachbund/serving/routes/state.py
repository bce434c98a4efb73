"""How the service does: for machines that restart it, send it requests, or draw its curves."""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from sprachbund.serving.meters import CONTENT_TYPE
from sprachbund.serving.refusals import RefusalError
from sprachbund.serving.routes.access import ADMITTED, ServiceOf
from sprachbund.serving.routes.described import refusals

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
