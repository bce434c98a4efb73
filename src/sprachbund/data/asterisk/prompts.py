"""The recorded prompts of all speakers as one list, with their translations and their split."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sprachbund.data.asterisk.carriers import CARRIERS
from sprachbund.data.asterisk.packages import DOCS, LANGUAGES, SOUNDS, SPEAKERS, Speaker, find_tree
from sprachbund.data.asterisk.transcripts import Transcript, read_transcripts
from sprachbund.errors import SprachbundError

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
    """One recording with its words; ``load`` decodes it. ``speaker`` tells the voice, ``held_out`` never to
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
        from sprachbund.data.asterisk.clips import decode

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
