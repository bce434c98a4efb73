"""Live captions: the WebSocket's route. The messages are described in docs/serve.md."""

from fastapi import APIRouter
from starlette.websockets import WebSocket

from sprachbund.serving.live import PATH
from sprachbund.serving.service import service_of

router = APIRouter()


@router.websocket(PATH)
async def live(socket: WebSocket) -> None:
    """A live session, or one taken up again."""
    await socket.accept()
    service = service_of(socket)
    await service.room.serve(socket, lambda key: service.admit(socket, key))
