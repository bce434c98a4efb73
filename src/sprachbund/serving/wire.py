"""What a client may send over /v1/live, parsed before anything acts on it; sound to samples."""

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sprachbund.audio.constants import SAMPLE_RATE, WINDOW_S
from sprachbund.serving.refusals import RefusalError

Encoding = Literal["pcm_s16le", "pcm_f32le"]
_LOUDEST = 100.0
"""Of a sample; floating-point sound beyond this is something else than sound."""

_MOST = {
    "max_open_s": WINDOW_S,
    "border_s": WINDOW_S,
    "max_behind_s": 600.0,
    "max_waiting_s": 600.0,
    "right_context": 1000,
    "agreement": 100,
    "wait_k": 1000,
    "mask_words": 1000,
}
"""Of the settings of a session in a service: what an attempt costs, and what a session may keep, grows with them."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Start(_Message):
    """Begin a session.

    Attributes:
        model: id of a model; None is the service's first.
        targets: languages wanted.
        source: language spoken; None identifies it.
        languages: those that may be spoken, when it is identified.
        policy: when text is written; None is the default of `LiveOptions`.
        settings: other fields of `LiveOptions`.
        encoding: of the sound.
        sample_rate: of the sound, in Hz.
        key: where one is needed and cannot be sent as a header, as from a browser.
    """

    type: Literal["start"]
    model: str | None = None
    targets: Annotated[list[str], Field(min_length=1)]
    source: str | None = None
    languages: list[str] | None = None
    policy: str | None = None
    settings: dict[str, float | int | str] = {}
    encoding: Encoding = "pcm_s16le"
    sample_rate: Annotated[int, Field(ge=8_000, le=192_000)] = SAMPLE_RATE
    key: str | None = None


class Resume(_Message):
    """Go on with a session after a break; messages up to number `after` were seen."""

    type: Literal["resume"]
    session: str
    after: Annotated[int, Field(ge=0, lt=1 << 53)] = 0
    key: str | None = None


class Stop(_Message):
    """No more sound."""

    type: Literal["stop"]


_MESSAGES: TypeAdapter[Start | Resume | Stop] = TypeAdapter(
    Annotated[Start | Resume | Stop, Field(discriminator="type")]
)


def parse_message(text: str) -> Start | Resume | Stop:
    """A text message. Raises RefusalError: 400, which names what is wrong with it."""
    try:
        return _MESSAGES.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        said = (
            f"{place}: {first['msg']}"
            if place
            else f"{first['msg']}; text messages are JSON, sound is binary"
        )
        message = f"the message cannot be read: {said}"
        raise RefusalError(400, message[:500], code="bad_message") from error


def live_options(start: Start) -> Any:
    """The `LiveOptions` that a first message asks for.

    Raises:
        RefusalError: 400, for settings that are unknown, wrong, or would let one session work for all.
    """
    from sprachbund.streaming.options import LiveOptions

    values = dict(start.settings) | ({} if start.policy is None else {"policy": start.policy})
    known = LiveOptions.__dataclass_fields__
    if unknown := sorted(values.keys() - known.keys()):
        raise RefusalError(
            400,
            f"settings: {unknown[0][:100]!r} is not known; there are {', '.join(known)}",
            code="bad_settings",
        )
    try:
        options = TypeAdapter(LiveOptions).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RefusalError(400, f"settings: {place}: {first['msg']}"[:500], code="bad_settings") from error
    for name, most in _MOST.items():
        value = getattr(options, name)
        if value is not None and value > most:
            raise RefusalError(
                400, f"settings: {name} is {value:.10g}; {most:g} is the most here", code="bad_settings"
            )
    return options


class SoundDecoder:
    """Binary messages of a session to 16 kHz samples (N,); a sample may be cut between two messages.

    Attributes:
        received_s: seconds of sound that came, in whole samples.
    """

    def __init__(self, encoding: Encoding, sample_rate: int) -> None:
        import soxr

        self._type = np.dtype("<i2" if encoding == "pcm_s16le" else "<f4")
        self._rate, self._rest, self._num_samples = sample_rate, b"", 0
        self._resampler: Any = None
        if sample_rate != SAMPLE_RATE:
            self._resampler = soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")

    @property
    def received_s(self) -> float:
        """Seconds of sound that came, in whole samples."""
        return self._num_samples / self._rate

    def forget_rest(self) -> None:
        """Drop half a sample: after a break, the client sends it again."""
        self._rest = b""

    def decode(self, data: bytes) -> NDArray[np.float32]:
        """The samples of a message. Raises RefusalError: 415, for numbers that are no sound."""
        data = self._rest + data
        whole = len(data) // self._type.itemsize * self._type.itemsize
        self._rest = data[whole:]
        samples = np.frombuffer(data[:whole], self._type)
        if samples.dtype.kind == "i":
            floats = samples.astype(np.float32) / np.float32(32768)
        else:
            floats = samples.astype(np.float32)
            if not (np.abs(floats) <= _LOUDEST).all():  # also where it is not a number
                raise RefusalError(
                    415,
                    "a sample is not a number or far from -1 to 1; send pcm_f32le or say the encoding",
                    code="bad_sound",
                )
        self._num_samples += len(floats)
        return self._resampled(floats, last=False)

    def finish(self) -> NDArray[np.float32]:
        """What the resampler still holds."""
        return self._resampled(np.zeros(0, np.float32), last=True)

    def _resampled(self, samples: NDArray[np.float32], *, last: bool) -> NDArray[np.float32]:
        if self._resampler is None:
            return samples
        return np.asarray(self._resampler.resample_chunk(samples, last=last), np.float32)
