"""Human speech for training and testing: recorded telephone prompts, alone and composed, and their wording spoken
by the synthesiser.

Parts, each a manifest directory:

- `train`: recorded prompts, composed utterances, synthesised prompts, and pieces of prompts joined to sentences that
  nobody said, in every channel
- `dev`: like `composed`, of other meanings, to choose checkpoints by
- `composed`: new numbers, dates, times and sequences composed from the training speakers' recordings
- `known`: recorded prompts whose wording is in `train`, but not in this recording
- `unheard`: utterances like `composed` by speakers that are not in `train` at all
- `unseen`: recorded prompts whose wording is in no other part
- `dev_prompts`: the same, of other wording, to choose checkpoints by
- `left_out`: like `dev`, by the speakers of `Telephone.leave_out`, if there are any: checkpoints that are chosen by
  them are not those that know the training speakers by heart
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from sprachbund.audio.augment import CLEAN, WIDE, Augmentation
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.corpora.asterisk.compose import ComposedUtterance, composed_utterances, join
from sprachbund.corpora.asterisk.prompts import (
    PIECES,
    Clips,
    Prompt,
    PromptSet,
    cut_pieces,
    is_clip,
    load_clips,
    load_prompt_set,
    read_pieces,
)
from sprachbund.corpora.editions import add_no_speech, vary
from sprachbund.data.making import make_shards
from sprachbund.data.manifest import ManifestWriter, refuse_other
from sprachbund.data.synthesis import NothingSaidError
from sprachbund.data.synthesisers import (
    DEFAULT_SYNTHESIZERS,
    check_synthesizers,
    draw_any_voice,
    speak_as,
    synthesis_info,
)
from sprachbund.util.arrays import Samples

Part = Literal["train", "dev", "composed", "known", "unheard", "unseen", "dev_prompts", "left_out"]
SHARD_SIZE = 500
MAX_DURATION_S = 15.0
KNOWN_SHARE = 0.25
_MAX_DRAWINGS = 100
# Pieces of a joined utterance, fewer where they would be longer than ten seconds.
_JOINED = (2, 5)
_JOINED_S = 10.0
# What all speakers say in the same words; carriers of the speakers never heard are not transcribed.
HELD_OUT_KINDS = ("digits", "number", "ordinal", "date", "time")


@dataclass(frozen=True, kw_only=True)
class Telephone:
    """Options of drawing the parts.

    Attributes:
        seed: seed of everything drawn.
        languages: languages of the texts; recordings exist for those of the prompt packages.
        train_utterances: size of `train`.
        heldout_utterances: sizes of `composed` and `unheard`; `dev` is half of that.
        shares: shares of recorded prompts, composed utterances, synthesised prompts and joined pieces of prompts in
            `train`.
        augmentation: augmentation of `train`.
        leave_out: speakers kept out of `train` besides those that always are.
        kinds: kinds of the composed utterances of `train`; any, and joined prompts, if empty.
        synthesizers: synthesizers of the prompts' wording in `train`, equally often where they can speak.
        pieces: table of where prompts may be cut (see `sprachbund.corpora.asterisk.prompts`).
    """

    seed: int = 4
    languages: tuple[str, ...] = ("en", "es", "fr", "it", "de", "ru")
    train_utterances: int = 70_000
    heldout_utterances: int = 1000
    shares: tuple[float, float, float, float] = (0.22, 0.32, 0.26, 0.2)
    augmentation: Augmentation = field(default=WIDE)
    leave_out: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    synthesizers: tuple[str, ...] = DEFAULT_SYNTHESIZERS
    pieces: Path = PIECES


def make_telephone(
    directory: Path,
    options: Telephone,
    *,
    source: Path | None = None,
    workers: int = 2,
    ray_address: str | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> None:
    """Make all parts from the prompt packages in `source` (fetched when None); what is there already stays.

    Raises SprachbundError if a synthesiser cannot speak (see `check_synthesizers`), a shard cannot be made, or
    the folder holds another corpus.

    Args:
        directory: folder of the corpus.
        options: sizes and channels.
        source: prompt packages; None fetches them.
        workers: processes.
        ray_address: as for `sprachbund.data.making.make_shards`.
        progress: called with what is being done, how much of it is, and of how much (0: unknown).
    """
    check_synthesizers(options.synthesizers, options.languages)
    sounds = _Sounds.load(source, directory, options, progress)
    sizes: dict[Part, int] = {
        "known": len(sounds.known),
        "unseen": len(sounds.unseen),
        "dev": options.heldout_utterances // 2,
        "composed": options.heldout_utterances,
        "unheard": options.heldout_utterances,
        "train": options.train_utterances,
    }
    if sounds.dev_prompts:  # few prompts may have none
        sizes["dev_prompts"] = len(sounds.dev_prompts)
    if options.leave_out:
        sizes["left_out"] = options.heldout_utterances // 2
    for part, count in sizes.items():
        refuse_other(directory / part, f"telephone/{part}")
        make = partial(_make_shard, sounds, part, count)
        make_shards(
            directory / part,
            -(-count // SHARD_SIZE),
            make,
            workers=workers,
            ray_address=ray_address,
            progress=partial(progress, f"shards of {part}"),
        )
        info = _info(part, options, sounds) | synthesis_info(directory / part, options.synthesizers)
        ManifestWriter(directory / part).close(info)


@dataclass(frozen=True, kw_only=True)
class _Sounds:
    """The recordings, sorted by what they may be used for."""

    options: Telephone
    prompts: PromptSet
    train: list[Prompt]
    known: list[Prompt]
    unseen: list[Prompt]
    dev_prompts: list[Prompt]
    clips: Mapping[str, Clips]
    pieces: Mapping[str, Sequence[tuple[str, Samples]]]
    unheard_clips: Mapping[str, Clips]
    left_out_clips: Mapping[str, Clips]
    texts: Mapping[str, Mapping[str, str]]

    @classmethod
    def load(
        cls,
        source: Path | None,
        directory: Path,
        options: Telephone,
        progress: Callable[[str, int, int], None],
    ) -> "_Sounds":
        progress("finding recordings", 0, 0)
        prompts = load_prompt_set(source, cache=directory / ".packages")
        in_training = [p for p in prompts.prompts if not p.held_out and p.speaker not in options.leave_out]
        sentences = [p for p in in_training if not is_clip(p.name) and p.duration_s <= MAX_DURATION_S]
        wording = {p.name: prompts.split_of_prompt(p.name) for p in sentences}
        known = [p for p in sentences if wording[p.name] == "train" and is_known_only_in_text(p)]
        withheld_prompts = set(known)
        usable = [p for p in in_training if p not in withheld_prompts]
        read = partial(progress, "reading recordings")
        others = [p for p in prompts.prompts if p.held_out or p.speaker in options.leave_out]
        train = [p for p in sentences if p not in withheld_prompts and wording[p.name] == "train"]
        unheard = {k: replace(c, held_out=False) for k, c in load_clips(others, progress=read).items()}
        return cls(
            options=options,
            prompts=prompts,
            train=train,
            known=known,
            unseen=[p for p in sentences if wording[p.name] == "test"],
            dev_prompts=[p for p in sentences if wording[p.name] == "dev"],
            clips=load_clips(usable, progress=read),
            pieces=cut_pieces(train, read_pieces(options.pieces)),
            unheard_clips=unheard,
            left_out_clips={name: clips for name, clips in unheard.items() if name in options.leave_out},
            texts={name: by for name, by in prompts.texts.items() if wording.get(name) == "train"},
        )


def is_known_only_in_text(prompt: Prompt) -> bool:
    """Whether this recording, though not its wording, is kept out of training: a fixed quarter, by hash."""
    digest = hashlib.sha256(f"{prompt.name}/{prompt.speaker}".encode()).digest()
    return digest[0] / 256 < KNOWN_SHARE


def _make_shard(
    sounds: _Sounds, part: Part, count: int, shard: int, attempt: int, writer: ManifestWriter
) -> None:
    options = sounds.options
    rng = random.Random(f"telephone/{options.seed}/{part}/{shard}/{attempt}")
    first, last = shard * SHARD_SIZE, min(count, (shard + 1) * SHARD_SIZE)
    recorded = {"known": sounds.known, "unseen": sounds.unseen, "dev_prompts": sounds.dev_prompts}
    if part in recorded:
        for prompt in recorded[part][first:last]:
            _add_prompt(sounds, prompt, f"{part}-{prompt.speaker}-{prompt.name}", CLEAN, rng, [], writer)
        return
    adder = _Adder(sounds, part, rng, writer)
    for number in range(first, last):
        adder.add(f"{part}-{number:07d}")


class _Adder:
    """Adds drawn utterances of one shard."""

    def __init__(self, sounds: _Sounds, part: Part, rng: random.Random, writer: ManifestWriter) -> None:
        self.sounds, self.part, self.rng, self.writer = sounds, part, rng, writer
        self.recent: list[np.ndarray] = []
        clips = _clips(sounds, part)
        # Sentences of whole prompts count as known wording, so held-out parts hold composed meanings only.
        kinds = sounds.options.kinds if part == "train" else HELD_OUT_KINDS
        self.composed = composed_utterances(
            clips,
            rng,
            {"train": "train", "dev": "dev", "left_out": "dev"}.get(part, "test"),
            prompts=None if kinds else sounds.prompts,
            kinds=kinds or None,
        )
        self.names = sorted(sounds.texts)
        self.speakers = sorted(sounds.pieces)
        # Recordings of other packages than those of the table have no pieces.
        *shares, joined = sounds.options.shares
        self.shares = (*shares, joined if self.speakers else 0.0)
        self.seen: set[tuple[str, str]] = set()

    def add(self, utterance_id: str) -> None:
        options, rng = self.sounds.options, self.rng
        if self.part != "train":
            return self._add_composed(utterance_id, CLEAN)
        if rng.random() < 0.01:
            return add_no_speech(self.writer, utterance_id, rng)
        way = rng.choices(("recorded", "composed", "spoken", "joined"), self.shares)[0]
        if way == "recorded":
            prompt = rng.choice(self.sounds.train)
            return _add_prompt(
                self.sounds, prompt, utterance_id, options.augmentation, rng, self.recent, self.writer
            )
        if way == "composed":
            return self._add_composed(utterance_id, options.augmentation)
        return self._add_joined(utterance_id) if way == "joined" else self._add_spoken(utterance_id)

    def _add_composed(self, utterance_id: str, augmentation: Augmentation) -> None:
        made = next(m for m in islice(self.composed, 1000) if self._fits(m))
        self.seen.add((made.speaker, made.text))
        self.writer.add(
            vary(made.samples, self.rng, augmentation, self.recent),
            text=made.text,
            language=made.language,
            speaker=made.speaker,
            utterance_id=utterance_id,
            translations=_wanted(made.translations, self.sounds.options.languages),
            custom={"kind": f"composed/{made.kind}", "corpus": "telephone"},
        )

    def _fits(self, made: ComposedUtterance) -> bool:
        """Short enough, and in a held-out part nothing twice: few numbers are held out, and they come often."""
        new = self.part == "train" or (made.speaker, made.text) not in self.seen
        return new and len(made.samples) <= MAX_DURATION_S * 16_000

    def _add_joined(self, utterance_id: str) -> None:
        """Pieces of prompts in any order: words as people say them, in sentences that cannot be known by heart.

        They have no translation, because nobody says what such a sentence means.
        """
        rng = self.rng
        speaker = rng.choice(self.speakers)
        drawn = rng.choices(self.sounds.pieces[speaker], k=rng.randint(*_JOINED))
        while len(drawn) > 1 and sum(len(samples) for _, samples in drawn) > _JOINED_S * SAMPLE_RATE:
            drawn.pop()
        texts, sounds = zip(*drawn, strict=True)
        self.writer.add(
            vary(join(sounds, rng), rng, self.sounds.options.augmentation, self.recent),
            text=" ".join(texts),
            language=self.sounds.clips[speaker].language,
            speaker=speaker,
            utterance_id=utterance_id,
            translations={},
            custom={"kind": "prompt/joined", "corpus": "telephone"},
        )

    def _add_spoken(self, utterance_id: str) -> None:
        """A prompt's wording spoken by a synthesiser; drawn again where a voice lacks a sound of the text."""
        rng = self.rng
        for number in range(_MAX_DRAWINGS):
            texts = self.sounds.texts[rng.choice(self.names)]
            language = rng.choice([tag for tag in texts if tag in self.sounds.options.languages])
            voice = draw_any_voice(language, rng, "train", self.sounds.options.synthesizers)
            try:
                samples = speak_as(texts[language], voice, exact=False)[: int(MAX_DURATION_S * 16_000)]
                break
            except NothingSaidError:  # a voice that was cut from recordings lacks some sounds
                if number == _MAX_DRAWINGS - 1:
                    raise
        self.writer.add(
            vary(samples, rng, self.sounds.options.augmentation, self.recent),
            text=texts[language],
            language=language,
            speaker=voice.name,
            utterance_id=utterance_id,
            translations=_wanted(
                {tag: text for tag, text in texts.items() if tag != language}, self.sounds.options.languages
            ),
            custom={"kind": "prompt/spoken", "corpus": "telephone"},
        )


def _add_prompt(
    sounds: _Sounds,
    prompt: Prompt,
    utterance_id: str,
    augmentation: Augmentation,
    rng: random.Random,
    recent: list[np.ndarray],
    writer: ManifestWriter,
) -> None:
    samples = sounds.clips[prompt.speaker].samples.get(prompt.name) if augmentation is not CLEAN else None
    samples = prompt.load() if samples is None else samples
    writer.add(
        vary(samples, rng, augmentation, recent),
        text=prompt.text,
        language=prompt.language,
        speaker=prompt.speaker,
        utterance_id=utterance_id,
        translations=_wanted(
            sounds.prompts.translations(prompt.name, prompt.language), sounds.options.languages
        ),
        custom={"kind": "prompt/recorded", "prompt": prompt.name, "corpus": "telephone"},
    )


def _wanted(texts: Mapping[str, str], languages: Iterable[str]) -> dict[str, str]:
    return {tag: texts[tag] for tag in languages if tag in texts}


def _clips(sounds: _Sounds, part: Part) -> Mapping[str, Clips]:
    """The recordings that a part is composed of, by speaker."""
    return {"unheard": sounds.unheard_clips, "left_out": sounds.left_out_clips}.get(part, sounds.clips)


def _info(part: Part, options: Telephone, sounds: _Sounds) -> dict[str, object]:
    from sprachbund.corpora.asterisk.packages import SPEAKERS

    clips = _clips(sounds, part)
    speakers = [s for s in SPEAKERS if s.tag in clips]
    return {
        "name": f"telephone/{part}",
        "version": "1",
        "seed": options.seed,
        "languages": list(options.languages),
        "licence": sorted({s.licence for s in speakers}),
        "attribution": {s.tag: s.attribution for s in speakers},
        "left_out_speakers": list(options.leave_out),
    }
