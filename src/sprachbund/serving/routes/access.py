"""Dependencies of the routes (authentication, the service), and their OpenAPI responses."""

from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel

from sprachbund.serving.schemas import TextForm
from sprachbund.serving.service import Service, service_of

_scheme = HTTPBearer(auto_error=False, description="A key of the service; needed where it was given keys.")


def service(request: Request) -> Service:
    """The service that the request came to."""
    return service_of(request)


def admitted(
    request: Request, key: Annotated[HTTPAuthorizationCredentials | None, Security(_scheme)] = None
) -> None:
    """Let the request through, or refuse it."""
    request.state.owner = service_of(request).admit(request)


ServiceOf = Annotated[Service, Depends(service)]
ADMITTED = Depends(admitted)


# OpenAPI schemas of bodies that are parsed by hand, and of refusals.

_REFUSAL = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_REASONS = {
    400: "A field is wrong, a language or pair is not known, or the file is not audio.",
    401: "A key is needed, or is wrong.",
    403: "A page of another site asks.",
    404: "There is no such model.",
    408: "The request came too slowly.",
    413: "The recording is too big or too long.",
    415: "The body is of another kind.",
    429: "Too many requests; Retry-After says when to try again.",
    501: "The model does not do this.",
    503: "The service is being stopped, or the model cannot be loaded.",
    507: "There is no room to store the recording.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Refusals with these statuses, for `responses` of a route."""
    content = {"application/json": {"schema": _REFUSAL}}
    known: dict[int | str, dict[str, Any]] = {
        status: {"description": _REASONS[status], "content": content} for status in statuses
    }
    # With this, FastAPI does not write down its own form of errors, which never comes.
    return {**known, "4XX": {"description": "Refused; the message says why.", "content": content}}


REFUSALS = refusals(400, 401, 403, 404, 408, 413, 415, 429, 503)
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The text, in the form that was asked for.",
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["text"]}},
            "text/plain": {"schema": {"type": "string"}},
            "application/x-subrip": {"schema": {"type": "string"}},
            "text/vtt": {"schema": {"type": "string"}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    },
    **REFUSALS,
    **refusals(507),
}


def form_body(form: type[BaseModel]) -> dict[str, Any]:
    """The body of a route that takes a recording."""
    schema = form.model_json_schema(by_alias=True)
    file = {"type": "string", "format": "binary", "description": "A recording in any container."}
    schema["properties"] = {"file": file, **schema["properties"]}
    schema["required"] = ["file", *schema["required"]]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def text_body() -> dict[str, Any]:
    """The body of the route that takes texts."""
    schema = TextForm.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
