"""The recorded prompts of all speakers as one list, with translations and split, and their decoded recordings.

Recordings of composed utterances are kept in memory, trimmed, at one level. `pieces.tsv` says where recordings can be
cut between words.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.corpora.asterisk.packages import DOCS, LANGUAGES, SOUNDS, SPEAKERS, Speaker, find_tree
from sprachbund.corpora.asterisk.transcripts import Transcript, read_transcripts
from sprachbund.errors import SprachbundError
from sprachbund.util.arrays import Samples
from sprachbund.util.files import write_text
from sprachbund.util.progress import Progress, nothing

# Decoded recordings.

LEVEL_RMS = 0.07
PEAK_LIMIT = 0.95
SILENCE_DB = -38.0
NOISE_MARGIN_DB = 8.0
LEAST_RANGE_DB = -18.0
RUMBLE_HZ = 70.0
FRAME_S = 0.01
MARGIN_S = 0.02
MAX_CLIP_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Clips:
    """The recordings of one speaker, ready to be joined: samples and words by prompt name (small letters)."""

    language: str
    speaker: str
    held_out: bool
    samples: Mapping[str, Samples]
    texts: Mapping[str, str]

    def first(self, names: Iterable[str]) -> str | None:
        """The first of ``names`` that was recorded, or None."""
        return next((name for name in names if name in self.samples), None)


def decode(path: Path) -> Samples:
    """Decode a recording (raw G.722, raw GSM, WAV) to 16 kHz mono float32. Raises SprachbundError if it
    cannot.
    """
    import av

    form = {".g722": "g722", ".gsm": "gsm"}.get(path.suffix)
    try:
        with av.open(str(path), format=form) as container:
            resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
            frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
            frames.extend(resampler.resample(None))
    except (av.FFmpegError, OSError, IndexError) as error:
        raise SprachbundError(f"{path} cannot be decoded ({error}); unpack the package again") from error
    if not frames:
        raise SprachbundError(f"{path} holds no sound; unpack the package again")
    return np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames]).astype(np.float32)


def without_rumble(samples: Samples) -> Samples:
    """High-pass at 70 Hz: the recordings of some speakers start with a decaying offset of the amplifier."""
    from scipy.signal import sosfilt, sosfilt_zi

    settled = sosfilt_zi(_rumble_filter()) * samples[0]  # as if the offset had always been there: no click
    return np.asarray(sosfilt(_rumble_filter(), samples, zi=settled)[0], dtype=np.float32)


@cache
def _rumble_filter() -> npt.NDArray[np.float64]:
    from scipy.signal import butter

    return np.asarray(butter(4, RUMBLE_HZ, btype="highpass", fs=SAMPLE_RATE, output="sos"))


def frame_powers_db(samples: Samples) -> npt.NDArray[np.float64]:
    """Power of every frame of 10 ms in dB (N,)."""
    size = int(FRAME_S * SAMPLE_RATE)
    count = len(samples) // size
    powers = (samples[: count * size].reshape(count, size).astype(np.float64) ** 2).mean(axis=1)
    return np.asarray(10 * np.log10(powers + 1e-12))


def noise_floor_db(recordings: Iterable[Samples]) -> float:
    """The level of a speaker's silence: median over the recordings of the quietest tenth of each."""
    quiet = [
        np.percentile(frame_powers_db(samples), 10) for samples in recordings if len(samples) > SAMPLE_RATE
    ]
    return float(np.median(quiet)) if quiet else -np.inf


def trim(samples: Samples, floor_db: float = -np.inf) -> Samples:
    """Cut the silence at both ends, less a margin of 20 ms.

    Silence is what lies 38 dB under the loudest frame, or less than 8 dB over the speaker's noise
    ``floor_db``, but never what lies within 18 dB of the loudest.
    """
    powers = frame_powers_db(samples)
    if len(powers) < 3 or not np.any(samples):
        return samples
    peak = powers.max()
    threshold = min(max(peak + SILENCE_DB, floor_db + NOISE_MARGIN_DB), peak + LEAST_RANGE_DB)
    loud = np.flatnonzero(powers > threshold)
    size, margin = int(FRAME_S * SAMPLE_RATE), int(MARGIN_S * SAMPLE_RATE)
    return samples[max(0, loud[0] * size - margin) : (loud[-1] + 1) * size + margin]


def level(samples: Samples) -> Samples:
    """Bring the loud half of a clip to one level, without clipping."""
    loudness = np.abs(samples)
    active = samples[loudness > np.median(loudness)]
    rms = float(np.sqrt((active**2).mean())) if len(active) else 0.0
    if rms == 0.0:
        return samples
    gain = min(LEVEL_RMS * np.sqrt(2) / rms, PEAK_LIMIT / float(loudness.max()))
    return (samples * np.float32(gain)).astype(np.float32)


def load_clips(
    prompts: Iterable[Prompt],
    *,
    max_duration_s: float = MAX_CLIP_S,
    progress: Progress = nothing,
) -> dict[str, Clips]:
    """Decode, trim and level the recordings of every speaker; the result is keyed by speaker.

    Args:
        prompts: prompts of any speakers.
        max_duration_s: longer recordings are left out: nobody joins them to others.
        progress: called with recordings done and in all.
    """
    by_speaker: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        if prompt.duration_s <= max_duration_s:
            by_speaker.setdefault(prompt.speaker, []).append(prompt)
    done, total = 0, sum(map(len, by_speaker.values()))
    clips = {}
    for speaker, mine in by_speaker.items():
        progress(done, total)
        clips[speaker] = _load_speaker(mine)
        done += len(mine)
    return clips


def _load_speaker(prompts: list[Prompt]) -> Clips:
    recordings = [without_rumble(prompt.load()) for prompt in prompts]
    floor_db = noise_floor_db(recordings)
    trimmed = (level(trim(samples, floor_db)) for samples in recordings)
    return Clips(
        language=prompts[0].language,
        speaker=prompts[0].speaker,
        held_out=prompts[0].held_out,
        samples={prompt.name: samples for prompt, samples in zip(prompts, trimmed, strict=True)},
        texts={prompt.name: prompt.text for prompt in prompts},
    )


# Prompts that an exchange joins with a number: building blocks, so every split may use them.

# What follows the prompt: one digit, some digits, a count, or a time of day.
NUMBER_PROMPTS: dict[str, str] = {
    "conf-enteringno": "digits",
    "queue-thereare": "number",
    "vm-from-extension": "digits",
    "vm-from-phonenumber": "digits",
    "vm-extension": "digits",
    "vm-theperson": "digits",
    "vm-num-i-have": "digits",
    "vm-press": "digit",
    "dir-multi1": "digit",
    "dir-multi3": "digits",
    "to-extension": "digits",
    "telephone-number": "digits",
    "number": "digits",
    "you-entered": "digits",
    "at-tone-time-exactly": "time",
    "privacy-to-blacklist-last-caller": "digits",
    "conf-thereare": "number",
    "confbridge-there-are": "number",
    "queue-quantity1": "number",
    "queue-less-than": "number",
    "vm-youhave": "number",
}
CARRIERS: frozenset[str] = frozenset(NUMBER_PROMPTS) | {
    "queue-holdtime",
    "vm-isonphone",
    "vm-isunavail",
    "vm-received",
    "is-in-use",
}


TEST_SHARE, DEV_SHARE = 0.12, 0.05
# An English text of at least this many words ties the prompts that contain it into one group of the split.
CONTAINED_WORDS = 4
# Shorter English texts ("for", "new") are words, not sentences: building blocks that every split shares.
SENTENCE_WORDS = 3
CLIP_FOLDERS = ("digits/", "letters/", "phonetic/")
G722_BYTES_PER_S = 8000
GSM_BYTES_PER_S = 1650
WAV_HEADER_BYTES, WAV_BYTES_PER_S = 44, 16000
GERMAN = "de"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One recording with its words; ``load`` decodes it. ``speaker`` names the voice, ``held_out`` never to
    train on it.
    """

    name: str
    language: str
    speaker: str
    text: str
    raw_text: str
    path: Path
    duration_s: float
    licence: str
    held_out: bool

    def load(self) -> npt.NDArray[np.float32]:
        """The samples (16 kHz, mono, float32)."""

        return decode(self.path)


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts of all speakers, their texts by name and language, and what the cleaning rules did per
    language.
    """

    prompts: tuple[Prompt, ...]
    texts: Mapping[str, Mapping[str, str]]
    splits: Mapping[str, str]
    cleaning: Mapping[str, Mapping[str, int]]

    def translations(self, name: str, language: str) -> dict[str, str]:
        """The same prompt in the other languages (language to text)."""
        return {other: text for other, text in self.texts.get(name, {}).items() if other != language}

    def split_of_prompt(self, name: str) -> str:
        """``train``, ``dev`` or ``test``; clips (digits, letters) belong to ``train``: their compositions are
        split.
        """
        return self.splits.get(name, "train")


def is_clip(name: str) -> bool:
    """Whether a recording is a building block (a digit, a letter, a weekday) rather than a prompt."""
    return name.startswith(CLIP_FOLDERS)


def load_prompts(
    source: Path, languages: Sequence[str] = LANGUAGES, *, cache: Path | None = None
) -> list[Prompt]:
    """Every recording with usable words in ``source`` (unpacked tree or folder of .deb files) of
    ``languages``.

    Args:
        source: unpacked tree or folder of .deb files.
        languages: BCP-47 tags.
        cache: folder for downloaded and unpacked packages; None for `.asterisk` beside the source.
    """
    return list(load_prompt_set(source, languages, cache=cache).prompts)


def load_prompt_set(
    source: Path | None, languages: Sequence[str] = LANGUAGES, *, cache: Path | None = None
) -> PromptSet:
    """Read transcripts and recordings of all speakers of ``languages``.

    Raises SprachbundError for an unknown language, and when the English transcripts, which define the split,
    are missing. ``cache`` takes downloaded and unpacked packages (default: ``.asterisk`` beside the source).
    """
    unknown = [language for language in languages if language not in LANGUAGES]
    if unknown:
        raise SprachbundError(f"no recorded prompts in {unknown[0]!r}; there are {', '.join(LANGUAGES)}")
    tree = find_tree(source, cache or (source or Path.cwd()) / ".asterisk")
    transcripts, cleaning = _read_all(tree)
    texts = _texts_by_name(transcripts)
    prompts = [
        prompt
        for speaker in SPEAKERS
        if speaker.language in languages and speaker.language in transcripts
        for prompt in _recordings(tree, speaker, transcripts[speaker.language])
    ]
    if not prompts:
        raise SprachbundError(
            f"{tree / SOUNDS} holds no recordings in {', '.join(languages)}; check the packages"
        )
    return PromptSet(prompts=tuple(prompts), texts=texts, splits=assign_splits(texts), cleaning=cleaning)


def assign_splits(texts: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Split of every prompt name, so that no sentence of one split occurs in another, in any language.

    Names are united when they share a whole text in any language, or when the English text of one (of at
    least four words) is contained in the other's. The split follows from a hash of the group's first English
    text, so it does not change when prompts are added elsewhere.
    """
    groups = _united(name_keys(texts))
    splits: dict[str, str] = {}
    for members in groups:
        anchor = min((texts[name].get("en", name) for name in members), key=_by_length)
        digest = hashlib.sha256(anchor.lower().encode()).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        split = "test" if share < TEST_SHARE else "dev" if share < TEST_SHARE + DEV_SHARE else "train"
        block = len(anchor.split()) < SENTENCE_WORDS or not CARRIERS.isdisjoint(members)
        splits.update({name: "train" if block or is_clip(name) else split for name in members})
    return splits


def name_keys(texts: Mapping[str, Mapping[str, str]]) -> dict[str, set[str]]:
    """The keys that tie prompt names together: ``language:text``, and the English texts contained in a
    prompt's own.
    """
    keys = {
        name: {f"{language}:{text.lower()}" for language, text in by.items()} for name, by in texts.items()
    }
    english = {name: f" {by['en'].lower()} " for name, by in texts.items() if "en" in by}
    long = {text for text in english.values() if len(text.split()) >= CONTAINED_WORDS}
    for name, text in english.items():
        keys[name].update(f"en:{part.strip()}" for part in long if part in text)
    return keys


def _by_length(text: str) -> tuple[int, str]:
    return -len(text.split()), text


def _united(keys: Mapping[str, Iterable[str]]) -> list[list[str]]:
    parent = {name: name for name in keys}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    first: dict[str, str] = {}
    for name in sorted(keys):
        for key in keys[name]:
            parent[root(name)] = root(first.setdefault(key, name))
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(keys):
        groups[root(name)].append(name)
    return list(groups.values())


def _read_all(tree: Path) -> tuple[dict[str, dict[str, Transcript]], dict[str, Counter[str]]]:
    transcripts: dict[str, dict[str, Transcript]] = {}
    cleaning: dict[str, Counter[str]] = {}
    for language in LANGUAGES:
        base = tree / DOCS / f"asterisk-core-sounds-{language}" / f"core-sounds-{language}.txt"
        path = next((p for p in (base.with_suffix(".txt.gz"), base) if p.exists()), None)
        if path is not None:
            transcripts[language], cleaning[language] = read_transcripts(path, language)
    if "en" not in transcripts:
        raise SprachbundError(
            f"no English transcripts under {tree / DOCS}; add the package asterisk-core-sounds-en"
        )
    return transcripts, cleaning


def _texts_by_name(transcripts: Mapping[str, Mapping[str, Transcript]]) -> dict[str, dict[str, str]]:
    texts: dict[str, dict[str, str]] = defaultdict(dict)
    for language, by_name in transcripts.items():
        for name, transcript in by_name.items():
            texts[name][language] = transcript.text
    for name, text in german_texts().items():
        if name in texts:
            texts[name][GERMAN] = text
    return dict(texts)


def german_texts() -> dict[str, str]:
    """The project's own German wording of the prompts (there is no German recording), by name; empty if not
    there.
    """
    path = Path(__file__).parents[1] / "phrasebook" / "prompts_de.tsv"
    if not path.exists():
        return {}
    rows = (line.split("\t") for line in path.read_text("utf-8").splitlines() if not line.startswith("#"))
    return {row[0].lower(): row[1].strip() for row in rows if len(row) > 1 and row[1].strip()}


def _recordings(tree: Path, speaker: Speaker, transcripts: Mapping[str, Transcript]) -> Iterable[Prompt]:
    folder = tree / SOUNDS / speaker.folder
    for path in sorted(folder.rglob(f"*{speaker.suffix}")):
        name = path.relative_to(folder).with_suffix("").as_posix().lower()
        transcript = transcripts.get(name)
        if transcript is None:
            continue
        yield Prompt(
            name=name,
            language=speaker.language,
            speaker=speaker.tag,
            text=transcript.text,
            raw_text=transcript.raw_text,
            path=path,
            duration_s=_duration_s(path),
            licence=speaker.licence,
            held_out=speaker.held_out,
        )


def _duration_s(path: Path) -> float:
    """Seconds, from the size: G.722, GSM and 8 kHz 16-bit WAV have fixed rates."""
    size = path.stat().st_size
    if path.suffix == ".g722":
        return size / G722_BYTES_PER_S
    if path.suffix == ".gsm":
        return size / GSM_BYTES_PER_S
    return (size - WAV_HEADER_BYTES) / WAV_BYTES_PER_S


# Pieces of recordings, cut between words: what `telephone` joins to sentences that nobody said.
# `scripts/prompt_pieces.py` made the table, and only of prompts that are trained on.

PIECES = Path(__file__).with_name("pieces.tsv")
_PIECE_COLUMNS = ("speaker", "prompt", "start_s", "end_s", "text")


@dataclass(frozen=True, kw_only=True)
class RecordedPiece:
    """Seconds of a recording as it was delivered, and the words that are said there."""

    speaker: str
    prompt: str
    start_s: float
    end_s: float
    text: str


def write_pieces(pieces: Iterable[RecordedPiece], path: Path = PIECES) -> None:
    """Write a table of pieces.

    Args:
        pieces: pieces of any speakers.
        path: path of the table.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
    writer.writerow(_PIECE_COLUMNS)
    for piece in pieces:
        times = (f"{piece.start_s:.3f}", f"{piece.end_s:.3f}")
        writer.writerow([piece.speaker, piece.prompt, *times, piece.text])
    write_text(path, buffer.getvalue())


def read_pieces(path: Path = PIECES) -> list[RecordedPiece]:
    """The pieces of a table, in its order."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            RecordedPiece(
                speaker=row["speaker"],
                prompt=row["prompt"],
                start_s=float(row["start_s"]),
                end_s=float(row["end_s"]),
                text=row["text"],
            )
            for row in csv.DictReader(file, delimiter="\t")
        ]


def cut_pieces(
    prompts: Sequence[Prompt], pieces: Iterable[RecordedPiece]
) -> Mapping[str, Sequence[tuple[str, Samples]]]:
    """Words and sound (num_samples,) of the pieces, at one level, by speaker.

    Args:
        prompts: recordings that may be used; pieces of others are left out.
        pieces: speaker, prompt, start, end and words of each piece.
    """
    by_name = {(prompt.speaker, prompt.name): prompt for prompt in prompts}
    of_prompt: dict[tuple[str, str], list[RecordedPiece]] = defaultdict(list)
    for piece in pieces:
        of_prompt[piece.speaker, piece.prompt].append(piece)
    cut: dict[str, list[tuple[str, Samples]]] = defaultdict(list)
    for name in sorted(of_prompt.keys() & by_name.keys()):
        samples = without_rumble(by_name[name].load())
        for piece in of_prompt[name]:
            part = samples[round(piece.start_s * SAMPLE_RATE) : round(piece.end_s * SAMPLE_RATE)]
            cut[name[0]].append((piece.text, level(part)))
    return cut
