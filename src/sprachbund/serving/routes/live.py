"""Live captions: the WebSocket's route. The messages are described in docs/serve.md."""

from urllib.parse import urlsplit

from fastapi import APIRouter
from starlette.websockets import WebSocket

from sprachbund.serving.live import PATH
from sprachbund.serving.service import service_of

router = APIRouter()
_FOREIGN = 4403


@router.websocket(PATH)
async def live(socket: WebSocket) -> None:
    """A live session, or one taken up again."""
    if _is_foreign(socket):
        await socket.close(_FOREIGN)  # before it is accepted: the browser gets a 403
        return
    await socket.accept()
    service = service_of(socket)
    await service.room.serve(socket, lambda key: service.admit(socket, key))


def _is_foreign(socket: WebSocket) -> bool:
    """Whether a page of another site opened the socket: browsers let every page try."""
    origin = socket.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != socket.headers.get("host")
