"""Which models there are, and what they know."""

from typing import Any

from fastapi import APIRouter

from sprachbund.serving.models import described_model, languages_of
from sprachbund.serving.routes.access import ADMITTED, ServiceOf
from sprachbund.serving.routes.described import refusals

router = APIRouter(prefix="/v1", tags=["models"], dependencies=[ADMITTED])
_REFUSALS = refusals(400, 401, 404, 429, 503)


@router.get("/models", responses=refusals(401, 429, 503))
def models(service: ServiceOf) -> dict[str, Any]:
    """All models that requests may name."""
    return {"object": "list", "data": [described_model(service.store, name) for name in service.store.ids]}


@router.get("/models/{model:path}", responses=_REFUSALS)
def model(model: str, service: ServiceOf) -> dict[str, Any]:
    """One model."""
    service.store.card(model)
    return described_model(service.store, model)


@router.get("/languages", responses=_REFUSALS)
async def languages(service: ServiceOf, model: str | None = None) -> dict[str, Any]:
    """What a model hears and writes; loads it if need be. Without a name, the first model."""
    async with service.store.lease(model or service.store.default) as worker:
        return languages_of(worker.model)
