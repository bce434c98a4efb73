"""What a user's program does with OpenAI's client; only that is imported, for the client has an environment of its own.

`python openai_program.py URL RECORDING PCM` prints as JSON what it got from the service at URL: of a recording in
Spanish, and of a realtime session that hears a file of 16-bit samples at 24 kHz.
"""

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import openai

SESSION = {
    "type": "transcription",
    "audio": {"input": {"transcription": {"model": "whisper-1", "language": "es"}, "turn_detection": None}},
}
TRANSCRIPTION = "conversation.item.input_audio_transcription"


def recordings(url: str, path: Path) -> dict[str, Any]:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    audio = client.audio
    verbose = audio.transcriptions.create(
        file=path, model="whisper-1", response_format="verbose_json", timestamp_granularities=["word"]
    )
    assert verbose.words
    events = list(audio.transcriptions.create(file=path, model="whisper-1", stream=True))
    likely = audio.transcriptions.create(
        file=path, model="whisper-1", language="es", include=["logprobs"], temperature=0
    )
    try:
        audio.transcriptions.create(file=path, model="whisper-3")
    except openai.NotFoundError as error:
        refused = error.code
    return {
        "transcription": audio.transcriptions.create(file=path, model="whisper-1").text,
        "translation": audio.translations.create(file=path, model="whisper-1").text,
        "srt": audio.transcriptions.create(file=path, model="whisper-1", response_format="srt"),
        "words": [word.word for word in verbose.words],
        "stream": "".join(event.delta for event in events if event.type == "transcript.text.delta"),
        "done": events[-1].text,
        "tokens": "".join(entry.token or "" for entry in likely.logprobs or []),
        "refused": refused,
        "models": [model.id for model in client.models.list()],
    }


async def realtime(url: str, pcm: bytes) -> str:
    client = openai.AsyncOpenAI(
        base_url=f"{url}/v1",
        websocket_base_url=f"{url}/v1".replace("http", "ws"),  # that of 2025 opens wss:// otherwise
        api_key="unused",
    )
    async with client.realtime.connect(extra_query={"intent": "transcription"}) as talk:
        await talk.session.update(session=SESSION)  # type: ignore[arg-type]
        for start in range(0, len(pcm), 48_000):
            audio = base64.b64encode(pcm[start : start + 48_000]).decode()
            await talk.input_audio_buffer.append(audio=audio)
        await talk.input_audio_buffer.commit()
        deltas = ""
        async for event in talk:
            if event.type == "error":
                raise RuntimeError(event.error.message)
            if event.type == f"{TRANSCRIPTION}.delta":
                deltas += event.delta or ""
            elif event.type == f"{TRANSCRIPTION}.completed":
                assert event.transcript == deltas
                return deltas
    raise RuntimeError("the session ended without the text")


if __name__ == "__main__":
    address, recording, samples = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    results = recordings(address, recording)
    results["realtime"] = asyncio.run(asyncio.wait_for(realtime(address, samples.read_bytes()), 60))
    print(json.dumps({"version": openai.__version__, **results}))
