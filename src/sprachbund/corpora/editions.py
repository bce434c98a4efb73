"""Editions of the phrasebook in sound: languages, numbers of sentences, voices and channels.

`phrasebook/standard` is the fixed edition that every small experiment uses, so that their tables compare. Each
shard is drawn from (edition, part, shard, attempt) alone.
"""

import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock

from sprachbund.audio.augment import CLEAN, NO_SPEECH_KINDS, TRAIN, WIDE, Augmentation, augment, no_speech
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.corpora.catalogues import SOURCES_FILE, SentenceTable
from sprachbund.corpora.phrasebook import LANGUAGES, Meaning, draw, draw_kind, render, split_of
from sprachbund.data.making import make_shards
from sprachbund.data.manifest import INFO_FILE, Manifest, ManifestWriter, Utterances, refuse_other
from sprachbund.data.synthesis import NothingSaidError
from sprachbund.data.synthesisers import (
    DEFAULT_SYNTHESIZERS,
    AnyVoice,
    check_synthesizers,
    draw_any_voice,
    speak_as,
    synthesis_info,
)
from sprachbund.errors import SprachbundError
from sprachbund.util.files import read_object
from sprachbund.util.options import OptionValueError
from sprachbund.util.progress import Progress, Report, nothing

Part = Literal["train", "dev", "test"]
SHARD_SIZE = 500
NUM_BABBLERS = 12
MAX_DURATION_S = 15.0
_MAX_DRAWINGS = 100


@dataclass(frozen=True, kw_only=True)
class Edition:
    """One fixed drawing from the phrasebook.

    Attributes:
        name: as it is asked for.
        seed: seed of everything drawn.
        languages: languages spoken and written.
        train_utterances: size of the training part.
        heldout_sentences: sentences of dev and of test for each spoken language.
        augmentation: augmentation of the training part; dev and test stay clean.
        no_speech_share: share of the training part without speech, and with empty texts.
        exact: render the same samples on every machine, at half the speed; otherwise only nearly the same.
        kinds: kinds of the meanings, equally often (see `phrasebook.draw.KINDS`); all by their weights if empty.
        synthesizers: synthesizers that speak, equally often where they can (see `sprachbund.data.synthesisers`).
        spoken: languages spoken; all of `languages` if empty.
        sentences: folder of tables of sentences besides the phrasebook's own (see `sprachbund.corpora.catalogues`).
        sentence_share: share of the utterances of train and dev that say a sentence of these tables.
    """

    name: str
    seed: int
    languages: tuple[str, ...]
    train_utterances: int
    heldout_sentences: int = 500
    augmentation: Augmentation = TRAIN
    no_speech_share: float = 0.02
    exact: bool = True
    kinds: tuple[str, ...] = ()
    synthesizers: tuple[str, ...] = DEFAULT_SYNTHESIZERS
    spoken: tuple[str, ...] = ()
    sentences: Path | None = None
    sentence_share: float = 0.0

    def __post_init__(self) -> None:
        for field, tags in (("languages", self.languages), ("spoken", self.spoken)):
            for tag in tags:
                if tag not in LANGUAGES:
                    raise OptionValueError(field, tag, f"choose from {', '.join(LANGUAGES)}")
        if not 0.0 <= self.sentence_share <= 1.0:
            raise SprachbundError(f"the share of sentences is {self.sentence_share:g}; give 0 to 1")
        if (self.sentences is None) != (self.sentence_share == 0.0):
            raise SprachbundError("a folder of sentences and their share go together; give both, or neither")


EDITIONS = {
    edition.name: edition
    for edition in (
        Edition(
            name="standard",
            seed=1,
            languages=("en", "es", "fr", "it", "de", "ru", "pt", "nl"),
            train_utterances=64_000,
        ),
        Edition(
            name="bundled",
            seed=2,
            languages=("en", "es", "fr", "it", "de", "ru"),
            train_utterances=80_000,
            augmentation=WIDE,
            exact=False,
        ),
        Edition(
            name="tiny",
            seed=3,
            languages=("en", "de"),
            train_utterances=200,
            heldout_sentences=20,
            augmentation=CLEAN,
        ),
    )
}


def edition(name: str, **changes: Any) -> Edition:
    """An edition by name, with some of its fields changed. Raises OptionValueError for an unknown name."""
    if name not in EDITIONS:
        raise OptionValueError("edition", name, f"choose one of {', '.join(EDITIONS)}")
    return replace(EDITIONS[name], **changes)


def make_edition(
    directory: Path,
    edition: Edition,
    *,
    workers: int = 2,
    ray_address: str | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> None:
    """Render an edition into `directory/train`, `dev` and `test`; what is already there stays.

    Raises SprachbundError if a synthesiser cannot speak (see `check_synthesizers`), or a shard cannot be made.

    Args:
        directory: folder of the corpus.
        edition: languages, sizes, voices and channels.
        workers: processes.
        ray_address: as for `sprachbund.data.making.make_shards`.
        progress: called with what is being done, how much of it is, and of how much.
    """
    sizes: dict[Part, int] = {
        "dev": edition.heldout_sentences * len(edition.languages),
        "test": edition.heldout_sentences * len(edition.languages),
        "train": edition.train_utterances,
    }
    for part, count in sizes.items():
        report = partial(progress, f"shards of {part}")
        make_part(
            directory / part, edition, part, count, workers=workers, ray_address=ray_address, progress=report
        )


def make_part(
    directory: Path,
    edition: Edition,
    part: Part,
    count: int,
    *,
    workers: int = 2,
    ray_address: str | None = None,
    progress: Progress = nothing,
) -> None:
    """Render `count` utterances of one part of an edition into a directory; what is already there stays.

    Raises SprachbundError as `make_edition` does, and for a directory that holds another corpus.

    Args:
        directory: folder of the part.
        edition: languages, sizes, voices and channels.
        part: "train", "dev" or "test".
        count: number of utterances.
        workers: processes.
        ray_address: as for `sprachbund.data.making.make_shards`.
        progress: called with shards done and in all.
    """
    check_synthesizers(edition.synthesizers, edition.languages)
    name = f"phrasebook/{edition.name}/{part}"
    refuse_other(directory, name)
    make = partial(_make_shard, edition, part, count)
    make_shards(
        directory, -(-count // SHARD_SIZE), make, workers=workers, ray_address=ray_address, progress=progress
    )
    spoken = synthesis_info(directory, edition.synthesizers)
    info = {
        "name": name,
        "version": "1",
        "seed": edition.seed,
        "languages": list(edition.languages),
        **_rights(edition, list(spoken.get("spoken_by", edition.synthesizers))),
        **spoken,
    }
    ManifestWriter(directory).close(info)


def _rights(edition: Edition, voices: Sequence[str]) -> dict[str, Any]:
    """Licence and attribution: the phrasebook's own texts are free, those of catalogues are other people's."""
    attribution = "generated by sprachbund; voices by " + ", ".join(voices)
    path = edition.sentences / SOURCES_FILE if edition.sentences else None
    texts = read_object(path) if path and path.exists() else {}
    if not texts:
        return {"licence": "CC0-1.0", "attribution": attribution}
    sources = ", ".join(f"{name} ({licence or 'licence not stated'})" for name, licence in texts.items())
    return {
        "licence": sorted({"CC0-1.0", *filter(None, texts.values())}),
        "attribution": f"{attribution}; texts of {sources}",
    }


def draw_meaning(part: Part, rng: random.Random, kinds: Sequence[str] = ()) -> Meaning:
    """A meaning that belongs to a part, of any kind or of one of `kinds`.

    Args:
        part: "train", "dev" or "test".
        rng: source of all random choices.
        kinds: kinds of sentence; empty for all.
    """
    while True:
        meaning = draw_kind(rng.choice(kinds), rng) if kinds else draw(rng)
        if split_of(meaning) == part:
            return meaning


def _make_shard(
    edition: Edition, part: Part, count: int, shard: int, attempt: int, writer: ManifestWriter
) -> None:
    rng = random.Random(f"{edition.name}/{edition.seed}/{part}/{shard}/{attempt}")
    numbers = range(shard * SHARD_SIZE, min(count, (shard + 1) * SHARD_SIZE))
    spoken = edition.spoken or edition.languages
    recent: list[np.ndarray] = []
    for number in numbers:
        utterance_id = f"{edition.name}-{part}-{number:07d}"
        if part == "train" and rng.random() < edition.no_speech_share:
            add_no_speech(writer, utterance_id, rng)
            continue
        # Held-out parts give every language the same number of sentences.
        language = spoken[number % len(spoken)]
        _add_sentence(edition, part, language, utterance_id, rng, recent, writer)


@dataclass(frozen=True, kw_only=True)
class SpokenSentence:
    """A sentence of an edition: its meaning, words and voice.

    Attributes:
        language: language spoken.
        meaning: meaning of the texts.
        texts: language to text, in all languages of the edition.
        voice: voice that speaks.
    """

    language: str
    meaning: Meaning
    texts: Mapping[str, str]
    voice: AnyVoice

    def fields(self, edition: Edition) -> dict[str, Any]:
        """Fields of the sentence as a manifest holds them."""
        custom = {"kind": self.meaning.kind, "meaning": self.meaning.key}
        return {
            "text": self.texts[self.language],
            "language": self.language,
            "speaker": self.voice.name,
            "translations": {tag: text for tag, text in self.texts.items() if tag != self.language},
            "custom": {**custom, "corpus": f"phrasebook/{edition.name}"},
        }


def draw_sentence(edition: Edition, part: Part, language: str, rng: random.Random) -> SpokenSentence:
    """A sentence of a part that is spoken in a language.

    Args:
        edition: languages and kinds.
        part: "train", "dev" or "test".
        language: BCP-47 tag.
        rng: source of all random choices.
    """
    # Tables have no test part: what is tested is the phrasebook's wording and the recorded prompts'.
    if edition.sentences is not None and part != "test" and rng.random() < edition.sentence_share:
        meaning, texts = _draw_row(edition, part, language, rng)
    else:
        meaning = draw_meaning(part, rng, edition.kinds)
        texts = {tag: render(meaning, tag, rng if tag == language else None) for tag in edition.languages}
    voice = draw_any_voice(language, rng, part, edition.synthesizers)
    return SpokenSentence(language=language, meaning=meaning, texts=texts, voice=voice)


def _draw_row(
    edition: Edition, part: Part, language: str, rng: random.Random
) -> tuple[Meaning, dict[str, str]]:
    """A sentence of the edition's tables that has a text in a language."""
    assert edition.sentences is not None
    rows, keys = _rows(edition.sentences / f"{part}.tsv", language)
    key = rng.choice(keys)
    texts = {tag: text for tag, text in rows[key].items() if tag in edition.languages}
    return Meaning(kind="sentence", slots={"key": key}), texts


@cache
def _rows(path: Path, language: str) -> tuple[Mapping[str, Mapping[str, str]], tuple[str, ...]]:
    """A table, and the keys of the sentences that it has in a language."""
    rows = SentenceTable.read(path).rows
    keys = tuple(key for key, texts in rows.items() if language in texts)
    if not keys:
        raise SprachbundError(
            f"{path} has no sentence in '{language}'; take another table, or other languages"
        )
    return rows, keys


def _add_sentence(
    edition: Edition,
    part: Part,
    language: str,
    utterance_id: str,
    rng: random.Random,
    recent: list[np.ndarray],
    writer: ManifestWriter,
) -> None:
    for number in range(_MAX_DRAWINGS):
        sentence = draw_sentence(edition, part, language, rng)
        try:
            samples = speak_as(sentence.texts[language], sentence.voice, exact=edition.exact)
        except NothingSaidError:  # a voice that was cut from recordings lacks some sounds
            if number == _MAX_DRAWINGS - 1:
                raise
            continue
        if len(samples) <= MAX_DURATION_S * SAMPLE_RATE:
            break
    samples = vary(samples, rng, edition.augmentation if part == "train" else CLEAN, recent)
    writer.add(samples, utterance_id=utterance_id, **sentence.fields(edition))


def vary(
    samples: np.ndarray, rng: random.Random, augmentation: Augmentation, recent: list[np.ndarray]
) -> np.ndarray:
    """Augment an utterance with the last ones as babble, and remember it.

    Args:
        samples: (num_samples,) float32 at 16 kHz.
        rng: source of all random choices.
        augmentation: channels, noise and speed.
        recent: last utterances, which serve as babble; changed in place.
    """
    varied = augment(samples, np.random.default_rng(rng.getrandbits(63)), augmentation, recent)
    recent.append(samples)
    del recent[:-NUM_BABBLERS]
    return varied


def add_no_speech(writer: ManifestWriter, utterance_id: str, rng: random.Random) -> None:
    """Add a sound without speech, whose text is empty in every language.

    Args:
        writer: manifest that gets the sound.
        utterance_id: unique name of the utterance.
        rng: source of all random choices.
    """
    kind = rng.choice(NO_SPEECH_KINDS)
    samples = no_speech(kind, rng.uniform(0.5, 5.0), np.random.default_rng(rng.getrandbits(63)))
    writer.add(
        samples,
        text="",
        language="",
        speaker="",
        utterance_id=utterance_id,
        custom={"kind": f"no-speech/{kind}", "corpus": "no-speech"},
    )


def texts_of(manifests: Sequence[Utterances], limit: int) -> list[str]:
    """Up to `limit` distinct texts of all languages, to fit a tokenizer on."""
    texts: dict[str, None] = {}
    for manifest in manifests:
        step = max(1, len(manifest) * len(manifests) * 6 // limit)
        for i in manifest.every(step):
            utterance = manifest[i]
            texts.update(dict.fromkeys([utterance.text, *utterance.translations.values()]))
    texts.pop("", None)
    return list(texts)


# Editions of the phrasebook that are spoken while a model trains on them: every epoch hears other
# utterances.
#
# An epoch's utterances are rendered when it begins and deleted when the next one is there, so a run of any
# length needs the space of one epoch. They are drawn from (edition, seed, epoch) alone: a resumed run
# finds them, or makes the same again where the edition is exact.

_LOCK = "lock"


class LiveEdition:
    """The training part of an edition, drawn anew for every epoch; stands where a `Manifest` stands.

    Args:
        edition: edition that is rendered; an epoch has `train_utterances`.
        directory: directory of the epoch's utterances.
        workers: processes that render; every core if None.
        report: called before an epoch is rendered.
    """

    def __init__(
        self,
        edition: Edition,
        directory: str | Path,
        *,
        workers: int | None = None,
        report: Report = lambda line: None,
    ) -> None:
        self.edition = edition
        self.directory = Path(directory)
        self.workers = workers or os.cpu_count() or 1
        self.report = report

    def at(self, epoch: int | None = None) -> Manifest:
        """The utterances of an epoch, rendered if they are not there; of any that is there, or the first, if None.

        Of several processes that ask, one renders and the others wait.

        Raises:
            SprachbundError: a synthesiser that cannot speak, or a shard that cannot be made.
        """
        with self._alone():
            there = [path for path in sorted(self.directory.glob("epoch-*")) if (path / INFO_FILE).exists()]
            if epoch is None and there:
                return Manifest(there[-1])
            path = self.directory / f"epoch-{epoch or 0:06d}"
            if path not in there:
                edition = replace(self.edition, name=f"{self.edition.name}-{path.name}")
                count = edition.train_utterances
                self.report(f"epoch {epoch or 0}: rendering {count} utterances of {self.edition.name}")
                make_part(path, edition, "train", count, workers=self.workers)
            for other in self.directory.glob("epoch-*"):
                if other != path:
                    shutil.rmtree(other)
            return Manifest(path)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.directory.mkdir(parents=True, exist_ok=True)
        with FileLock(self.directory / _LOCK):
            yield
