"""Code-switched speech from the phrasebook, its monolingual part, and recordings of people spliced across languages.

Parts, each a manifest directory:

- `train`, `dev`, `test`: sentences with a slot or two in another language, spoken by that language's voice of the same
  synthetic speaker
- `monolingual-train`, `-dev`, `-test`: the phrasebook in each of the languages alone
- `spliced-train`, `-test`: announcements of recorded prompts, some words from a speaker of another language; only
  where they are asked for

Meanings belong to one of train, dev and test wherever they occur, so nothing leaks from one part into another.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sprachbund.audio.augment import CLEAN, TRAIN, Augmentation
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.corpora.asterisk.compose import RUNS, play
from sprachbund.corpora.asterisk.prompts import Clips
from sprachbund.corpora.editions import (
    MAX_DURATION_S,
    SHARD_SIZE,
    Edition,
    Part,
    draw_meaning,
    make_part,
    vary,
)
from sprachbund.corpora.phrasebook import LANGUAGES, Meaning, Piece, draw_kind, render_pieces, split_of
from sprachbund.corpora.phrasebook.sentences import templates
from sprachbund.data.language_spans import WordRange, ranges_of_pieces
from sprachbund.data.making import make_shards
from sprachbund.data.manifest import Manifest, ManifestWriter, refuse_other
from sprachbund.data.synthesis import ACCENTS, Voice, draw_voice, speak
from sprachbund.errors import SprachbundError
from sprachbund.text.languages import MIXED
from sprachbund.util.arrays import FloatArray
from sprachbund.util.options import OptionValueError
from sprachbund.util.progress import Progress

# Sentences in which some slots are said in another language, with the position of every switch in text and in
# sound.
#
# Whoever says them (a synthesiser, recordings of people), a sentence is a sequence of runs, each in one
# language. Sound is made run by run and joined, so that the times of a switch are known to the sample.

MAX_GAP_S = 0.12
"""Longest silence between two runs, beside the margins that each has."""
_TWO_SLOTS = 0.3
"""Share of the sentences in which two slots are embedded, where there are two."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Words of one language that follow each other.

    Attributes:
        text: the words.
        language: BCP-47 tag.
        slots: said in it, if it is embedded.
    """

    text: str
    language: str
    slots: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MixedSentence:
    """A sentence that mixes languages, and its meaning, which all languages express.

    Attributes:
        meaning: meaning of the sentence.
        main: BCP-47 tag of the language of the sentence.
        runs: two at least; neighbours differ in language.
    """

    meaning: Meaning
    main: str
    runs: tuple[Run, ...]

    @property
    def text(self) -> str:
        """Text of the sentence as it is said."""
        return " ".join(run.text for run in self.runs)

    def fields(
        self, times_s: Sequence[tuple[float, float]], languages: Iterable[str], corpus: str
    ) -> dict[str, Any]:
        """Fields as a manifest holds them; the transcript is also the text in `MIXED`, for models that are asked for it
        so.

        Args:
            times_s: begin and end of each run.
            languages: languages of the texts.
            corpus: name of the corpus.
        """
        others = [tag for tag in languages if tag != self.main]
        rendered = {tag: render_pieces(self.meaning, tag) for tag in others}
        spans = [self._span(run, time_s, rendered) for run, time_s in zip(self.runs, times_s, strict=True)]
        for span, span_range in zip(
            spans, ranges_of_pieces([r.text for r in self.runs], self.text, self.main), strict=True
        ):
            if "word_ranges" in span and span_range is not None:
                span["word_ranges"] |= {tag: list(span_range) for tag in (self.main, MIXED)}
        translations = {tag: "".join(p.text for p in pieces) for tag, pieces in rendered.items()}
        spoken = list(dict.fromkeys([self.main, *(run.language for run in self.runs)]))
        return {
            "text": self.text,
            "language": self.main,
            "translations": {**translations, MIXED: self.text},
            "custom": {
                "kind": self.meaning.kind,
                "meaning": self.meaning.key,
                "corpus": corpus,
                "code_switched": True,
                "main_language": self.main,
                "languages": spoken,
                "spans": spans,
            },
        }

    def _span(
        self, run: Run, time_s: tuple[float, float], rendered: Mapping[str, Sequence[Piece]]
    ) -> dict[str, Any]:
        start_s, end_s = time_s
        span: dict[str, Any] = {
            "language": run.language,
            "start_s": start_s,
            "end_s": end_s,
            "text": run.text,
        }
        if run.language != self.main:
            ranges = {tag: range_of(run.slots, pieces, tag) for tag, pieces in rendered.items()}
            span["word_ranges"] = {tag: list(span_range) for tag, span_range in ranges.items() if span_range}
        return span


def draw_mixed(main: str, embedded: str, part: Part, rng: random.Random) -> MixedSentence:
    """A sentence of a part with one slot, or two, in another language.

    Args:
        main: BCP-47 tag of the sentence.
        embedded: BCP-47 tag of the slots.
        part: "train", "dev" or "test".
        rng: source of all random choices.
    """
    while True:
        meaning = draw_meaning(part, rng)
        if meaning.kind in templates() and (sentence := mixed(meaning, main, embedded, rng)):
            return sentence


def mixed(meaning: Meaning, main: str, embedded: str, rng: random.Random) -> MixedSentence | None:
    """A meaning with some of its slots embedded; None where a switch would be inside a word, or none would be heard.

    Args:
        meaning: language-neutral meaning.
        main: BCP-47 tag of the sentence.
        embedded: BCP-47 tag of the slots.
        rng: source of all random choices.
    """
    slots = list(templates()[meaning.kind].slots)
    count = 2 if len(slots) > 1 and rng.random() < _TWO_SLOTS else 1
    chosen = dict.fromkeys(rng.sample(slots, count), embedded)
    pieces = render_pieces(meaning, main, rng, embedded=chosen)
    runs = [list(run) for _, run in groupby(pieces, key=lambda piece: piece.language)]
    texts = ["".join(piece.text for piece in run) for run in runs]
    between_words = all(one[-1:] == " " or other[:1] == " " for one, other in pairwise(texts))
    plain = {piece.slot: piece.text for piece in render_pieces(meaning, main)}
    alike = any(p.text == plain[p.slot] for p in pieces if p.language == embedded)
    if len(runs) < 2 or not between_words or alike or not all(text.strip() for text in texts):
        return None
    made = tuple(
        Run(
            text=text.strip(),
            language=run[0].language,
            slots=tuple(piece.slot for piece in run if piece.slot) if run[0].language == embedded else (),
        )
        for text, run in zip(texts, runs, strict=True)
    )
    return MixedSentence(meaning=meaning, main=main, runs=made)


def range_of(slots: Sequence[str], pieces: Sequence[Piece], language: str) -> WordRange | None:
    """Range of the words that translate some slots in a rendering; None where other words stand between them.

    Args:
        slots: names of slots.
        pieces: rendering, piece by piece.
        language: BCP-47 tag of the rendering.
    """
    whole = "".join(piece.text for piece in pieces)
    ranges = ranges_of_pieces([piece.text for piece in pieces], whole, language)
    own = {
        i: piece_range
        for i, (piece, piece_range) in enumerate(zip(pieces, ranges, strict=False))
        if piece.slot in slots
    }
    if len(own) < len(slots) or any(piece_range is None for piece_range in own.values()):
        return None
    spans = sorted(piece_range for piece_range in own.values() if piece_range)
    words = sum(end - start for start, end in spans)
    return (spans[0][0], spans[-1][1]) if spans[-1][1] - spans[0][0] == words else None


def join_runs(
    sounds: Sequence[FloatArray], rng: random.Random
) -> tuple[FloatArray, list[tuple[float, float]]]:
    """Sounds one behind the other with short silence between, and begin and end of each in seconds."""
    parts: list[FloatArray] = []
    times_s, length = [], 0
    for number, sound in enumerate(sounds):
        gap = round(rng.uniform(0, MAX_GAP_S) * SAMPLE_RATE) if number else 0
        parts += [np.zeros(gap, np.float32), sound]
        start, length = length + gap, length + gap + len(sound)
        times_s.append((start / SAMPLE_RATE, length / SAMPLE_RATE))
    return np.concatenate(parts), times_s


# Recordings of people spliced across languages: an exchange's announcement whose number, time or date is
# another's.
#
# The runs of an announcement are composed as those of one language are
# (`sprachbund.corpora.asterisk.compose`), each from the recordings of a speaker of its language. Two people
# speak, so a change of voice goes with each switch.

_MAX_DRAWS = 20_000
"""Most draws of meanings: one in fifty is held out, and the recordings cannot say all of the others."""


def draw_spliced(
    main: str, embedded: str, part: Part, clips: Mapping[str, Clips], rng: random.Random
) -> tuple[MixedSentence, list[FloatArray]]:
    """An announcement of a part, and the sound of its runs.

    Args:
        main: language of the announcement.
        embedded: language of the value in it.
        part: part that the meaning belongs to.
        clips: a speaker of each of the two.
        rng: draws.

    Raises:
        SprachbundError: the recordings suffice for none.
    """
    kinds = sorted(RUNS)
    for _ in range(_MAX_DRAWS):
        meaning = draw_kind(rng.choice(kinds), rng)
        if split_of(meaning) == part and (made := spliced(meaning, main, embedded, clips, rng)):
            return made
    raise SprachbundError(
        f"no announcement in {main} with words in {embedded} can be spliced from the recordings of "
        f"{' and '.join(c.speaker for c in clips.values())}; leave the pair out, or get the whole packages"
    )


def spliced(
    meaning: Meaning, main: str, embedded: str, clips: Mapping[str, Clips], rng: random.Random
) -> tuple[MixedSentence, list[FloatArray]] | None:
    """A meaning said so; None where a recording is missing, or a language has no such words.

    Args:
        meaning: language-neutral meaning.
        main: BCP-47 tag of the announcement.
        embedded: BCP-47 tag of the other run.
        clips: recordings by language.
        rng: source of all random choices.
    """
    runs, sounds = [], []
    for slots, build in RUNS[meaning.kind]:
        tag = embedded if slots else main
        pieces = build(meaning, tag, rng)
        made = play(pieces, clips[tag], rng) if pieces else None
        if made is None:
            return None
        runs.append(Run(text=made.text, language=tag, slots=slots))
        sounds.append(np.trim_zeros(made.samples))  # of the silence that was put around it
    return MixedSentence(meaning=meaning, main=main, runs=tuple(runs)), sounds


KEEPING_TIMES = replace(TRAIN, voice_probability=0.0, silence_probability=0.0)
"""All of `TRAIN` but what changes when something is said."""


@dataclass(frozen=True, kw_only=True)
class MixedSpeechOptions:
    """Options of drawing the parts.

    Attributes:
        pairs: main and embedded language, equally often.
        languages: languages of the texts; those of the pairs among them.
        seed: seed of everything drawn.
        train_utterances: size of `train` and of `monolingual-train`.
        heldout_utterances: sizes of the dev and test parts, of each pair or language.
        spliced_utterances: size of `spliced-train`; 0 for no recordings of people.
        augmentation: augmentation of the training parts; it may not change times.
    """

    pairs: tuple[tuple[str, str], ...] = (("es", "en"), ("en", "es"))
    languages: tuple[str, ...] = ("en", "es", "de")
    seed: int = 6
    train_utterances: int = 8000
    heldout_utterances: int = 200
    spliced_utterances: int = 0
    augmentation: Augmentation = KEEPING_TIMES

    def __post_init__(self) -> None:
        if not self.pairs:
            raise SprachbundError("no languages to mix are named; name a pair, as in es+en")
        for field, tags in (("pairs", self.spoken), ("languages", self.languages)):
            for tag in tags:
                if tag not in LANGUAGES:
                    raise OptionValueError(field, tag, f"choose from {', '.join(LANGUAGES)}")
        for main, embedded in self.pairs:
            if main == embedded:
                raise SprachbundError(f"{main}+{embedded} mixes a language with itself; name two")
        if len(set(self.pairs)) < len(self.pairs):
            raise SprachbundError("a pair of languages is named twice; name each once")
        if missing := [tag for tag in self.spoken if tag not in self.languages]:
            raise OptionValueError(
                "languages",
                ",".join(self.languages),
                f"add {missing[0]}",
                reason=f"and `pairs` has speech in {missing[0]}",
            )
        if self.augmentation.voice_probability or self.augmentation.silence_probability:
            raise SprachbundError("an augmentation that changes tempo or adds silence would move the spans")

    @property
    def spoken(self) -> tuple[str, ...]:
        """Languages spoken."""
        return tuple(dict.fromkeys(tag for pair in self.pairs for tag in pair))


def read_pair(text: str) -> tuple[str, str]:
    """Main and embedded language of "es+en". Raises SprachbundError for anything else."""
    main, sign, embedded = text.strip().partition("+")
    if not sign or not main or not embedded or "+" in embedded:
        raise SprachbundError(f"{text!r} is no pair of languages; write main+embedded, as in es+en")
    return main, embedded


def make_mixed(
    directory: Path,
    options: MixedSpeechOptions,
    *,
    source: Path | None = None,
    workers: int = 2,
    ray_address: str | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> None:
    """Make all parts; what is there already stays.

    Args:
        directory: directory of the parts.
        options: languages and sizes of the parts.
        source: prompt packages or their tree, where recordings are spliced; fetched when None.
        workers: processes at a time.
        ray_address: as for `sprachbund.data.making.make_shards`.
        progress: called with what is being done, how much of it is, and of how much (0: unknown).

    Raises:
        SprachbundError: a shard that cannot be made; recordings that are not there, or of languages without any; a
            folder that holds another corpus.
    """
    held_out = options.heldout_utterances
    sizes: tuple[tuple[Part, int, int], ...] = (
        ("dev", held_out * len(options.pairs), held_out * len(options.spoken)),
        ("test", held_out * len(options.pairs), held_out * len(options.spoken)),
        ("train", options.train_utterances, options.train_utterances),
    )
    spliced = _recordings(options, source, directory, progress) if options.spliced_utterances else None
    for part, num_mixed, num_monolingual in sizes:
        make = partial(_make_shard, options, part, num_mixed)
        _make(
            directory / part,
            make,
            num_mixed,
            options,
            workers,
            ray_address,
            partial(progress, f"shards of {part}"),
        )
        name = f"monolingual-{part}"
        make_part(
            directory / name,
            _monolingual(options),
            part,
            num_monolingual,
            workers=workers,
            ray_address=ray_address,
            progress=partial(progress, f"shards of {name}"),
        )
        if spliced is not None and part != "dev":
            name, count = f"spliced-{part}", options.spliced_utterances if part == "train" else num_mixed
            make = partial(_make_spliced, options, part, count, spliced)
            report = partial(progress, f"shards of {name}")
            _make(directory / name, make, count, options, workers, ray_address, report, attribution(spliced))


def _monolingual(options: MixedSpeechOptions) -> Edition:
    return Edition(
        name="mixed",
        seed=options.seed,
        languages=options.languages,
        spoken=options.spoken,
        train_utterances=options.train_utterances,
        heldout_sentences=options.heldout_utterances,
        augmentation=options.augmentation,
        no_speech_share=0.0,
    )


def _make(
    directory: Path,
    make: Callable[[int, int, ManifestWriter], None],
    count: int,
    options: MixedSpeechOptions,
    workers: int,
    ray_address: str | None,
    progress: Progress,
    licence: Mapping[str, Any] | None = None,
) -> None:
    name = f"mixed/{directory.name}"
    refuse_other(directory, name)
    make_shards(
        directory, -(-count // SHARD_SIZE), make, workers=workers, ray_address=ray_address, progress=progress
    )
    info = {
        "name": name,
        "version": "1",
        "seed": options.seed,
        "languages": list(options.languages),
        "pairs": ["+".join(pair) for pair in options.pairs],
        "licence": "CC0-1.0",
        "attribution": "generated by sprachbund; voices by espeak-ng",
        **(licence or {}),
        **span_counts(Manifest(directory)),
    }
    ManifestWriter(directory).close(info)


def span_counts(manifest: Manifest) -> dict[str, Any]:
    """Switches, and spans and their hours by language."""
    spans = [list(utterance.custom.get("spans") or ()) for utterance in manifest]
    by_language: dict[str, dict[str, float]] = {}
    for span in (span for row in spans for span in row):
        counts = by_language.setdefault(span["language"], {"spans": 0, "hours": 0.0})
        counts["spans"] += 1
        counts["hours"] += (span["end_s"] - span["start_s"]) / 3600
    counted = {
        tag: {"spans": c["spans"], "hours": round(c["hours"], 3)} for tag, c in sorted(by_language.items())
    }
    return {"switches": sum(max(0, len(row) - 1) for row in spans), "spans": counted}


def _drawing(
    options: MixedSpeechOptions, part: str, count: int, shard: int, attempt: int
) -> tuple[random.Random, range]:
    rng = random.Random(f"mixed/{options.seed}/{options.pairs}/{part}/{shard}/{attempt}")
    return rng, range(shard * SHARD_SIZE, min(count, (shard + 1) * SHARD_SIZE))


def _make_shard(
    options: MixedSpeechOptions, part: Part, count: int, shard: int, attempt: int, writer: ManifestWriter
) -> None:
    rng, numbers = _drawing(options, part, count, shard, attempt)
    recent: list[np.ndarray] = []
    for number in numbers:
        pair = options.pairs[number % len(options.pairs)]
        sentence, voice, samples, times_s = _spoken(*pair, part, rng)
        writer.add(
            vary(samples, rng, options.augmentation if part == "train" else CLEAN, recent),
            speaker=voice.name,
            utterance_id=f"mixed-{part}-{number:07d}",
            **sentence.fields(times_s, options.languages, "mixed"),
        )


def _spoken(
    main: str, embedded: str, part: Part, rng: random.Random
) -> tuple[MixedSentence, Voice, np.ndarray, list[tuple[float, float]]]:
    """A sentence in sound: one speaker, who has a voice for each language."""
    while True:
        sentence = draw_mixed(main, embedded, part, rng)
        own = draw_voice(main, rng, part)
        voices = {main: own, embedded: replace(own, language=rng.choice(ACCENTS.get(embedded, (embedded,))))}
        sounds = [speak(run.text, voices[run.language]) for run in sentence.runs]
        samples, times_s = join_runs(sounds, rng)
        if len(samples) <= MAX_DURATION_S * SAMPLE_RATE:
            return sentence, own, samples, times_s


def _recordings(
    options: MixedSpeechOptions,
    source: Path | None,
    directory: Path,
    progress: Callable[[str, int, int], None],
) -> dict[str, list[Clips]]:
    """Language to its speakers."""
    from sprachbund.corpora.asterisk.prompts import load_clips, load_prompt_set

    progress("finding recordings", 0, 0)
    prompts = [p for p in load_prompt_set(source, cache=directory / ".packages").prompts if not p.held_out]
    recorded = {prompt.language for prompt in prompts}
    if missing := [tag for tag in options.spoken if tag not in recorded]:
        raise SprachbundError(
            f"there are no recorded prompts in {missing[0]}; leave its pairs out, or make no spliced part"
        )
    mine = [p for p in prompts if p.language in options.spoken]
    clips = load_clips(mine, progress=partial(progress, "reading recordings"))
    return {tag: [c for c in clips.values() if c.language == tag] for tag in options.spoken}


def attribution(recordings: Mapping[str, Iterable[Clips]]) -> dict[str, Any]:
    """Whose recordings they are, for `dataset.json`."""
    from sprachbund.corpora.asterisk.packages import SPEAKERS

    heard = {clips.speaker for clips_of in recordings.values() for clips in clips_of}
    speakers = [speaker for speaker in SPEAKERS if speaker.tag in heard]
    return {
        "licence": sorted({speaker.licence for speaker in speakers}),
        "attribution": {speaker.tag: speaker.attribution for speaker in speakers},
    }


def _make_spliced(
    options: MixedSpeechOptions,
    part: Part,
    count: int,
    recordings: Mapping[str, list[Clips]],
    shard: int,
    attempt: int,
    writer: ManifestWriter,
) -> None:
    rng, numbers = _drawing(options, f"spliced-{part}", count, shard, attempt)
    recent: list[np.ndarray] = []
    for number in numbers:
        main, embedded = options.pairs[number % len(options.pairs)]
        clips = {tag: rng.choice(recordings[tag]) for tag in (main, embedded)}
        sentence, sounds = draw_spliced(main, embedded, part, clips, rng)
        samples, times_s = join_runs(sounds, rng)
        writer.add(
            vary(samples, rng, options.augmentation if part == "train" else CLEAN, recent),
            speaker=f"{clips[main].speaker}+{clips[embedded].speaker}",
            utterance_id=f"spliced-{part}-{number:07d}",
            **sentence.fields(times_s, options.languages, "spliced"),
        )
