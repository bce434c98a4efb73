"""The one on-disk form of a corpus: a directory of shards that lhotse reads and that we read at random.

A shard is `cuts.00000.jsonl` (one lhotse MonoCut per line) beside `audio.00000.wav` (16 kHz, 16 bit, mono, the
shard's utterances back to back), so that a corpus of any size is a few files, every utterance is one seek away,
and copying it is copying a directory. `dataset.json` says what it is, whose, and how much. A shard appears
under its final name only when it is whole, so writing can be broken off and taken up again.
"""

import copy
import hashlib
import json
import wave
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.errors import SprachbundError
from sprachbund.util.files import atomic_path, write_json, write_text

INFO_FILE = "dataset.json"
"""What a corpus is, whose, and how much; it is written last."""


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One line of a manifest, without its sound.

    Attributes:
        id: unique within the corpus.
        duration_s: length in seconds.
        text: transcript.
        language: BCP-47 tag of the speech; empty for recordings without speech.
        speaker: who speaks.
        translations: language to text.
        custom: whatever else the corpus says of it (corpus, kind, spans ...).
    """

    id: str
    duration_s: float
    text: str
    language: str
    speaker: str
    translations: Mapping[str, str]
    custom: Mapping[str, Any]

    def text_in(self, language: str) -> str | None:
        """Transcript or translation in a language, None when there is none."""
        return (self.text or None) if language == self.language else self.translations.get(language)


class ManifestWriter:
    """Writes utterances into shards; a context manager, or call `close`.

    A writer on a directory that already holds whole shards continues after them, unless it is told its shard.
    """

    def __init__(self, directory: str | Path, shard_size: int = 1000, shard: int | None = None) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.shard_size = shard_size
        self.shard = len(shard_numbers(self.directory)) if shard is None else shard
        self._lines: list[dict[str, Any]] = []
        self._sound: list[np.ndarray] = []
        self._num_samples = 0

    def add(
        self,
        samples: np.ndarray,
        *,
        text: str,
        language: str,
        speaker: str,
        utterance_id: str,
        translations: Mapping[str, str] | None = None,
        custom: Mapping[str, Any] | None = None,
    ) -> None:
        """Append one utterance: samples (num_samples,) float32 at 16 kHz, and what is said in it."""
        pcm = (np.clip(samples, -1, 1) * 32767).astype(np.int16)
        self._lines.append(
            {
                "id": utterance_id,
                "start": self._num_samples / SAMPLE_RATE,
                "duration": len(pcm) / SAMPLE_RATE,
                "text": text,
                "language": language,
                "speaker": speaker,
                "custom": {"translations": dict(translations or {}), **(custom or {})},
            }
        )
        self._sound.append(pcm)
        self._num_samples += len(pcm)
        if len(self._lines) == self.shard_size:
            self.flush()

    def flush(self) -> None:
        """Write what has been added as a whole shard."""
        if not self._lines:
            return
        audio = self.directory / f"audio.{self.shard:05d}.wav"
        with atomic_path(audio) as partial, wave.open(str(partial), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
            file.writeframes(np.concatenate(self._sound).tobytes())
        recording = {
            "id": audio.stem,
            "sources": [{"type": "file", "channels": [0], "source": audio.name}],
            "sampling_rate": SAMPLE_RATE,
            "num_samples": self._num_samples,
            "duration": self._num_samples / SAMPLE_RATE,
            "channel_ids": [0],
        }
        cuts = self.directory / f"cuts.{self.shard:05d}.jsonl"
        write_text(cuts, "".join(_cut_line(line, recording) for line in self._lines))
        self.shard += 1
        self._lines, self._sound, self._num_samples = [], [], 0

    def close(self, info: Mapping[str, Any] | None = None) -> None:
        """Write the last shard and `dataset.json`: `info` plus counts and hours, in all and per language."""
        self.flush()
        manifest = Manifest(self.directory)
        write_json(self.directory / INFO_FILE, {**(info or {}), **manifest.summary()})

    def __enter__(self) -> "ManifestWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()


class Manifest:
    """A corpus directory, read at random; the sound is read only when asked for.

    Args:
        directory: of the corpus.
        shares: language to the share of its utterances that is taken, 0 to 1; a language that is not named is taken
            whole. Utterances are chosen by their id, so a smaller share is part of a larger one.

    Raises:
        SprachbundError: no corpus there, or a share of a language that it does not hold.

    Attributes:
        durations_s: (N,) length of every utterance.
        languages: (N,) BCP-47 tag of every utterance's speech.
    """

    def __init__(self, directory: str | Path, shares: Mapping[str, float] | None = None) -> None:
        self.directory = Path(directory)
        numbers = shard_numbers(self.directory)
        if not numbers:
            raise SprachbundError(
                f"{self.directory} holds no cuts.*.jsonl; make it with `sprachbund data make` or `data prepare`"
            )
        places: list[tuple[int, int, int]] = []
        durations: list[float] = []
        languages: list[str] = []
        seen: set[str] = set()
        for number in numbers:
            offset = 0
            for line in self._cuts_path(number).read_bytes().splitlines(keepends=True):
                cut = json.loads(line)
                language = cut["supervisions"][0].get("language", "")
                seen.add(language)
                if shares is None or language not in shares or _place_of(cut["id"]) < shares[language]:
                    places.append((number, offset, round(cut["start"] * SAMPLE_RATE)))
                    durations.append(cut["duration"])
                    languages.append(language)
                offset += len(line)
        if unknown := sorted(set(shares or {}) - seen):
            raise SprachbundError(
                f"{self.directory} holds no speech in {', '.join(unknown)}, of which a share is wanted; "
                f"it holds {', '.join(sorted(seen))}"
            )
        self._places = np.array(places, dtype=np.int64).reshape(-1, 3)
        self.durations_s = np.array(durations, dtype=np.float32)
        self.languages = np.array(languages)

    def __len__(self) -> int:
        return len(self.durations_s)

    def __getitem__(self, index: int) -> Utterance:
        number, offset, _ = self._places[index]
        with self._cuts_path(number).open("rb") as file:
            file.seek(offset)
            cut = json.loads(file.readline())
        said = cut["supervisions"][0]
        custom = dict(said.get("custom") or {})
        return Utterance(
            id=cut["id"],
            duration_s=cut["duration"],
            text=said["text"],
            language=said.get("language") or "",
            speaker=said.get("speaker") or "",
            translations=custom.pop("translations", {}),
            custom=custom,
        )

    def __iter__(self) -> Iterator[Utterance]:
        return (self[i] for i in range(len(self)))

    def only(self, chosen: Sequence[int] | np.ndarray) -> "Manifest":
        """The utterances of these indices, in the order of the corpus."""
        kept, part = np.sort(np.asarray(chosen, dtype=np.int64)), copy.copy(self)
        part._places, part.languages = self._places[kept], self.languages[kept]
        part.durations_s = self.durations_s[kept]
        return part

    def at(self, epoch: int | None = None) -> "Manifest":
        """What an epoch of training goes through: always the same here, see `sprachbund.data.live` for another."""
        return self

    def samples(self, index: int) -> np.ndarray:
        """Sound of an utterance, (num_samples,) float32 at 16 kHz."""
        number, _, start = self._places[index]
        num_samples = round(float(self.durations_s[index]) * SAMPLE_RATE)
        with wave.open(str(self.directory / f"audio.{number:05d}.wav"), "rb") as file:
            file.setpos(int(start))
            pcm = np.frombuffer(file.readframes(num_samples), dtype=np.int16)
        return pcm.astype(np.float32) / 32767

    def cuts(self) -> Any:
        """The corpus as a lazy lhotse CutSet whose recordings resolve from anywhere."""
        from lhotse import CutSet, combine

        shards = [CutSet.from_jsonl_lazy(self._cuts_path(n)) for n in shard_numbers(self.directory)]
        cuts = shards[0] if len(shards) == 1 else combine(*shards)
        return cuts.with_recording_path_prefix(self.directory)

    def summary(self) -> dict[str, Any]:
        """Counts and hours, in all and per language."""
        per_language = {
            tag: {
                "utterances": int((self.languages == tag).sum()),
                "hours": round(float(self.durations_s[self.languages == tag].sum()) / 3600, 3),
            }
            for tag in sorted(set(self.languages.tolist()))
        }
        hours = round(float(self.durations_s.sum()) / 3600, 3)
        return {"utterances": len(self), "hours": hours, "per_language": per_language}

    def _cuts_path(self, number: int) -> Path:
        return self.directory / f"cuts.{number:05d}.jsonl"


def _place_of(utterance_id: str) -> float:
    """A number in [0, 1) that is the utterance's for ever."""
    return int.from_bytes(hashlib.sha256(utterance_id.encode()).digest()[:8], "big") / 2**64


def shard_numbers(directory: Path) -> Sequence[int]:
    """Numbers of the whole shards in a directory, in order."""
    return sorted(int(path.name.split(".")[1]) for path in directory.glob("cuts.*.jsonl"))


def _cut_line(line: Mapping[str, Any], recording: Mapping[str, Any]) -> str:
    supervision = {
        "id": line["id"],
        "recording_id": recording["id"],
        "start": 0.0,
        "duration": line["duration"],
        "channel": 0,
        "text": line["text"],
        "language": line["language"],
        "speaker": line["speaker"],
        "custom": line["custom"],
    }
    cut = {
        "id": line["id"],
        "start": line["start"],
        "duration": line["duration"],
        "channel": 0,
        "supervisions": [supervision],
        "recording": recording,
        "type": "MonoCut",
    }
    return json.dumps(cut, ensure_ascii=False) + "\n"
