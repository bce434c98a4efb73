"""The numbers of the audio front end, each said once, so that no other file repeats a rate or a hop."""

SAMPLE_RATE = 16_000
"""Samples per second of all audio inside the package."""

HOP = 160
"""Samples from one log-mel frame to the next (10 ms)."""

WINDOW = 400
"""Samples under one Fourier window (25 ms); also the number of points of the transform."""

NUM_FREQUENCIES = WINDOW // 2 + 1
"""Bins of the one-sided spectrum of a window."""

FRAMES_PER_S = SAMPLE_RATE // HOP
"""Log-mel frames per second."""

WINDOW_S = 30.0
"""Length of the window, in seconds, that Whisper checkpoints were trained on."""

VAD_WINDOW = 512
"""Samples per voice activity probability (32 ms at 16 kHz), fixed by the Silero network."""

VAD_WINDOW_S = VAD_WINDOW / SAMPLE_RATE
"""Seconds per voice activity probability."""

LOUDEST = 100.0
"""Largest absolute sample that is taken for sound between -1 and 1; beyond it are numbers of another encoding."""

MAX_CHANNELS = 64
"""Most channels of a recording: decoded sound of a chunk takes memory by their number."""
