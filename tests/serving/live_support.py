"""What the tests of live captions share."""

from tests.serving.support import Client, talking

SPAN = {"targets": ["de"], "source": "es", "policy": "span"}


def text_of(bundled, samples, target="de", source="es"):
    result = bundled.translate(samples, to=target, source=source, sample_rate=16_000)
    return " ".join(segment.text for segment in result.segments)


async def whole(running, samples, first=SPAN) -> Client:
    async with talking(running, first) as client:
        await client.until("started")
        await client.send(samples)
        await client.tell(type="stop")
        await client.until("done")
        assert await client.closed() == 1000
        return client


def said(client: Client, target: str = "de") -> str:
    texts = [m["committed"] for m in client.seen if m["type"] == "text" and m["target"] == target]
    return " ".join(text.strip() for text in texts if text.strip())
