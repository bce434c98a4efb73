"""Stretches of long recordings: sought where the container can, otherwise decoded once for all of them."""

import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.load import load, open_audio
from sprachbund.data.corpora.items import Cut, Samples
from sprachbund.errors import SprachbundError

_SEEKABLE = frozenset({".wav", ".flac", ".ogg", ".sph"})
_BYTES = 2  # of a sample in the temporary file
_SLACK_S = 0.5  # published times run past the end of a recording by as much, without a word being lost


class Recordings:
    """Reads stretches of recordings; a context manager.

    A recording that cannot be sought in (mp3, m4a ...) is decoded once to a temporary file and kept until
    another one is asked for, so neither memory nor time grows with its length times its utterances.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "Recordings":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._forget()

    def samples(self, cut: Cut) -> Samples:
        """Sound of a stretch, (num_samples,) at 16 kHz.

        Raises:
            SprachbundError: no such recording, damaged, or it ends before the stretch does.
        """
        if cut.channel is not None:
            samples = _one_channel(cut, cut.channel)
        elif cut.duration_s is None and not cut.start_s:
            return _whole(cut.path)
        elif cut.path.suffix.lower() in _SEEKABLE or cut.duration_s is None:
            samples = load(cut.path, cut.start_s, cut.duration_s)
        else:
            samples = self._from_decoded(cut.path, cut.start_s, cut.duration_s)
        if cut.duration_s is not None:
            _check_length(cut, len(samples) / SAMPLE_RATE)
        return samples

    def _from_decoded(self, path: Path, start_s: float, duration_s: float) -> Samples:
        file = self._decoded(path)
        file.seek(round(start_s * SAMPLE_RATE) * _BYTES)
        pcm = np.frombuffer(file.read(round(duration_s * SAMPLE_RATE) * _BYTES), dtype=np.int16)
        return (pcm / 32767).astype(np.float32)

    def _decoded(self, path: Path) -> IO[bytes]:
        if self._file is not None and self._path == path:
            return self._file
        self._forget()
        file = tempfile.TemporaryFile()  # noqa: SIM115 - kept for the stretches to come
        for block in open_audio(path).blocks():
            file.write((np.clip(block, -1, 1) * 32767).astype(np.int16).tobytes())
        self._path, self._file = path, file
        return file

    def _forget(self) -> None:
        if self._file is not None:
            self._file.close()
        self._path = self._file = None


def _whole(path: Path) -> Samples:
    audio = open_audio(path)
    samples = np.concatenate(list(audio.blocks()))
    if audio.warnings:  # cut off or damaged: the transcript would say more than is heard
        raise SprachbundError(f"{path}: {audio.warnings[0]}")
    return samples


def _one_channel(cut: Cut, channel: int) -> Samples:
    import soundfile

    try:
        with soundfile.SoundFile(cut.path) as file:
            if channel >= file.channels:
                raise SprachbundError(f"{cut.path} has {file.channels} channels, not a channel {channel + 1}")
            file.seek(min(round(cut.start_s * file.samplerate), file.frames))
            frames = -1 if cut.duration_s is None else round(cut.duration_s * file.samplerate)
            heard = file.read(frames, dtype="float32", always_2d=True)[:, channel]
            rate = file.samplerate
    except soundfile.LibsndfileError as error:
        how = "copy it again" if cut.path.exists() else "check the folder"
        unpack = "; if it is shorten-compressed, unpack it with sph2pipe" if cut.path.exists() else ""
        raise SprachbundError(f"{cut.path} cannot be read ({error}); {how}{unpack}") from error
    if not len(heard):
        raise SprachbundError(f"{cut.path} has no sound after {cut.start_s:.2f} s; check the times")
    return load(np.ascontiguousarray(heard), sample_rate=rate)


def _check_length(cut: Cut, heard_s: float) -> None:
    wanted_s = cut.duration_s or 0.0
    if heard_s <= 0 or (wanted_s - heard_s > _SLACK_S and heard_s < 0.9 * wanted_s):
        raise SprachbundError(
            f"{cut.path} ends at {cut.start_s + heard_s:.2f} s, the utterance at "
            f"{cut.start_s + wanted_s:.2f} s; copy the recording again"
        )
