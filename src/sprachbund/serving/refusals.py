"""Refusals: a status and one line that says why, in the error body that OpenAI's clients read."""

from typing import Any

from sprachbund.audio.isolated import DecoderUnavailableError
from sprachbund.errors import SprachbundError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}

_RETRY_S = 5.0  # after which a process can perhaps be started


class RefusalError(SprachbundError):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: one line: the value seen, and what to do next.
        code: a word for programs.
        param: the field at fault.
        retry_after_s: when to come again; None when it would not help.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after_s = status, code, param, retry_after_s

    @property
    def message(self) -> str:
        """In one line."""
        return " ".join(str(self).split())

    def body(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Beside the body."""
        headers = (
            {} if self.retry_after_s is None else {"retry-after": str(max(1, round(self.retry_after_s)))}
        )
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def refusal_of(error: BaseException) -> RefusalError:
    """What an error means to a client: its own fault where it is one of ours, else ours, without the details."""
    if isinstance(error, RefusalError):
        return error
    if isinstance(error, DecoderUnavailableError):
        return RefusalError(503, str(error), code="no_decoder", retry_after_s=_RETRY_S)
    if isinstance(error, SprachbundError):
        return RefusalError(400, str(error))
    return RefusalError(
        500, "an unexpected error on the server; its log has the details under the request's id"
    )
