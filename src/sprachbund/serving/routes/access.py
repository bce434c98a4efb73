"""Who may use a route, and where the service is found: dependencies of the other routes."""

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

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
