"""The page, and the files it consists of: all from here, nothing from another host."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from sprachbund.serving.refusals import RefusalError

router = APIRouter(include_in_schema=False)
FOLDER = Path(str(files("sprachbund.serving"))) / "page"
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cache-control": "no-cache",
}


class _Files(StaticFiles):
    """With the page's headers."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.update(HEADERS)
        return response


@router.get("/")
def page() -> FileResponse:
    """The page."""
    index = FOLDER / "index.html"
    if not index.exists():
        raise RefusalError(404, "the page is not part of this installation; the service is under /v1")
    return FileResponse(index, headers=HEADERS)


def mount(app: FastAPI) -> None:
    """Add the page to an app."""
    app.include_router(router)
    app.mount("/static", _Files(directory=FOLDER, check_dir=False), name="static")
