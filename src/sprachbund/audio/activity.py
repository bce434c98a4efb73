"""How probably each 32 ms of audio is speech: the Silero network through onnxruntime, offline and streaming.

One code path: the offline call is a stream that gets everything in one block.
"""

from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .constants import VAD_WINDOW

_MODEL = "silero_vad_16k.onnx"
_CONTEXT = 64  # samples of the window before that the network sees again
_STATE_SHAPE = (1, 1, 128)
_MAX_WINDOWS = 512  # per call: 16 s, which bounds the memory of a call on a long recording
_ERRORS_ONLY = 3


class VoiceActivity:
    """The Silero detector, loaded once; holds no state of any audio, so that threads may share it."""

    def __init__(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the network is tiny: more threads cost more than they bring
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY  # it warns at every load about unused parts of the file
        model = resources.files(f"{__package__}.assets").joinpath(_MODEL).read_bytes()
        self._session: Any = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def probabilities(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the speech probability of every window of 512 samples.

        Args:
            samples: 16 kHz mono, shape (N,).

        Returns:
            float32 in [0, 1], shape (ceil(N / 512),); the last window is filled up with silence.
        """
        stream = self.stream()
        return np.concatenate([stream.feed(samples), stream.finish()])

    def stream(self) -> "VoiceActivityStream":
        """Start on new audio that arrives in blocks."""
        return VoiceActivityStream(self._session)


class VoiceActivityStream:
    """Probabilities of audio that arrives in blocks of any size; equal to the offline ones."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._hidden = np.zeros(_STATE_SHAPE, np.float32)
        self._cell = np.zeros(_STATE_SHAPE, np.float32)
        self._context = np.zeros(_CONTEXT, np.float32)
        self._rest = np.zeros(0, np.float32)  # samples of a window that is not complete yet

    def feed(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the next samples (N,) and give the probabilities (W,) of the windows they complete."""
        if block.ndim != 1:
            raise ValueError(f"a block has shape {block.shape}; give mono samples (N,)")
        samples = np.concatenate([self._rest, block.astype(np.float32, copy=False)])
        complete = len(samples) // VAD_WINDOW * VAD_WINDOW
        self._rest = samples[complete:].copy()
        size = _MAX_WINDOWS * VAD_WINDOW
        parts = [self._run(samples[i : min(i + size, complete)]) for i in range(0, complete, size)]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def finish(self) -> NDArray[np.float32]:
        """End the audio: the probability of the incomplete last window (1,), or (0,) if there is none."""
        if len(self._rest) == 0:
            return np.zeros(0, np.float32)
        return self.feed(np.zeros(VAD_WINDOW - len(self._rest), np.float32))

    def _run(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        windows = samples.reshape(-1, VAD_WINDOW)
        before = np.concatenate([self._context[None], windows[:-1, -_CONTEXT:]])
        self._context = windows[-1, -_CONTEXT:].copy()
        inputs = {"input": np.concatenate([before, windows], axis=1), "h": self._hidden, "c": self._cell}
        names = ["speech_probs", "hn", "cn"]
        probabilities, self._hidden, self._cell = self._session.run(names, inputs)
        return np.asarray(probabilities, np.float32).reshape(-1)
