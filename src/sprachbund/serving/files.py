"""A recording at work for a request: read and cut in a thread of its own, computed in the model's, its segments
handed to the event loop as they come."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor

from sprachbund.audio.activity import VoiceActivity
from sprachbund.audio.constants import SAMPLE_RATE, WINDOW_S
from sprachbund.audio.decoders import Samples
from sprachbund.audio.load import AudioSource, open_audio
from sprachbund.audio.sandbox import DecodingLimits
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.result import Segment, Translation
from sprachbund.decoding.translate import LongForm, finish_translation
from sprachbund.serving.refusals import RefusalError
from sprachbund.serving.uploads import Upload
from sprachbund.serving.worker import ModelWorker


class AbandonedError(Exception):
    """Nobody waits for the result any more."""


class BoundedAudio(AudioSource):
    """Audio that ends with an error when it turns out longer than allowed, whatever its header said.

    It is decoded in a process that can do nothing else: see `sprachbund.audio.isolated`.

    Args:
        upload: the recording.
        max_duration_s: longest that is allowed.
        abandoned: stops the reading when set.
        count: is told the seconds that were read, block by block.

    Raises:
        RefusalError: 413, at once where the header says so.
        SprachbundError: what was sent is not audio.
    """

    def __init__(
        self,
        upload: Upload,
        max_duration_s: float,
        abandoned: threading.Event,
        count: Callable[[float], None],
    ) -> None:
        most_s = (
            max_duration_s + 2 * WINDOW_S
        )  # what goes a little over is refused here, with the right status
        limits = DecodingLimits(duration_s=most_s)
        self._whole = open_audio(upload.file, name=upload.name, untrusted=True, limits=limits)
        self.name, self.duration_s, self.warnings = upload.name, self._whole.duration_s, self._whole.warnings
        self._most_s, self._abandoned, self._count = max_duration_s, abandoned, count
        if self.duration_s is not None and self.duration_s > max_duration_s:
            raise self._too_long(self.duration_s, "lasts")

    def blocks(self, block_s: float = WINDOW_S, *, start_s: float = 0.0) -> Iterator[Samples]:
        """As of any audio, up to the limit."""
        read_s = 0.0
        for block in self._whole.blocks(block_s, start_s=start_s):
            if self._abandoned.is_set():
                raise AbandonedError
            read_s += len(block) / SAMPLE_RATE
            if read_s > self._most_s:
                raise self._too_long(read_s, "goes on after")
            self._count(len(block) / SAMPLE_RATE)
            yield block

    def _too_long(self, duration_s: float, how: str) -> RefusalError:
        return RefusalError(
            413,
            f"{self.name} {how} {duration_s:.0f} s, and {self._most_s:.0f} s are the most; cut it",
            code="audio_too_long",
            param="file",
        )


class FileJob:
    """A recording being translated into one language: iterate for its segments, then ask for the `translation`.

    Args:
        worker: of the model.
        upload: the recording, open as long as the job is.
        target: language wanted, or "transcribe".
        source: language spoken; None identifies it.
        options: how to decode.
        max_duration_s: longest recording that is allowed.
        allow_damaged: whether what can be read of a damaged recording is enough.
        activity: the voice activity detector, shared.
        count: is told the seconds of audio that were read.

    Attributes:
        duration_s: of the recording, as far as it is known.
    """

    def __init__(
        self,
        worker: ModelWorker,
        upload: Upload,
        target: str,
        source: str | None,
        options: DecodingOptions,
        *,
        max_duration_s: float,
        allow_damaged: bool,
        activity: VoiceActivity,
        count: Callable[[float], None],
    ) -> None:
        self._allow_damaged = allow_damaged
        self._worker, self._target, self._source, self._options = worker, target, source, options
        self._upload, self._max_duration_s, self._activity, self._count = (
            upload,
            max_duration_s,
            activity,
            count,
        )
        self._abandoned = threading.Event()
        self._opening: asyncio.Future[LongForm] | None = None
        self._reading: asyncio.Future[None] | None = None
        self._results: asyncio.Queue[Segment | Translation | BaseException] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._work: LongForm | None = None
        self._translation: Translation | None = None

    async def start(self, executor: Executor) -> None:
        """Begin, in a thread of `executor`. Raises what is wrong with the request, before any segment."""
        self._opening = self._loop.run_in_executor(executor, self._open)
        self._work = await asyncio.shield(self._opening)
        self._reading = self._loop.run_in_executor(executor, self._run, self._work)

    @property
    def duration_s(self) -> float | None:
        """Of the recording; what its header says until it is read to the end."""
        return None if self._work is None else self._work.duration_s

    @property
    def translation(self) -> Translation:
        """The whole, after the last segment."""
        assert self._translation is not None
        return self._translation

    async def __aiter__(self) -> AsyncIterator[Segment]:
        while True:
            result = await self._results.get()
            if isinstance(result, BaseException):
                raise result
            if isinstance(result, Translation):
                self._translation = result
                self._refuse_damage()
                return
            yield result

    def _refuse_damage(self) -> None:
        """Half a recording is not taken for the whole, unless the client wants what there is."""
        assert self._work is not None
        damage = self._work.audio_warnings
        if damage and not self._allow_damaged:
            raise RefusalError(
                422,
                f"{'; '.join(damage)}; send the whole file, or allow_damaged=true for what can be read",
                code="damaged_audio",
                param="file",
            )

    async def close(self) -> None:
        """Stop the reading, and wait until nothing touches the recording any more."""
        self._abandoned.set()
        threads = [thread for thread in (self._opening, self._reading) if thread is not None]
        await asyncio.gather(*threads, return_exceptions=True)

    def _open(self) -> LongForm:
        audio = BoundedAudio(self._upload, self._max_duration_s, self._abandoned, self._count)
        model, targets = self._worker.model.family, [self._target]
        # In the model's thread: a draft beside the model may have to be loaded.
        return self._worker.call(
            lambda: LongForm(
                model,
                audio,
                targets,
                self._source,
                self._options,
                activity=self._activity,
                compute=self._worker.compute,
                speculation=self._worker.speculation(),
            )
        ).result()

    def _run(self, work: LongForm) -> None:
        try:
            segments = []
            for segment in work:
                segments.append(segment)
                self._tell(segment)
            self._tell(finish_translation(work, work.targets[0], segments))
        except BaseException as error:
            self._tell(error)

    def _tell(self, result: Segment | Translation | BaseException) -> None:
        self._loop.call_soon_threadsafe(self._results.put_nowait, result)


def options_of(
    *, languages: Sequence[str], prompt: str | None, words: bool, batch_size: int
) -> DecodingOptions:
    """How a request is decoded."""
    return DecodingOptions(
        allowed_languages=tuple(languages) or None,
        prompt=prompt or None,
        word_timestamps=words,
        batch_size=batch_size,
    )
