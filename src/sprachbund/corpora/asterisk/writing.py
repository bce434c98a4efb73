"""Writes manifest directories of the recorded prompts (train, dev, test, unheard speakers) and of composed
utterances.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from sprachbund.corpora.asterisk.packages import LANGUAGES, SPEAKERS
from sprachbund.corpora.asterisk.prompts import Clips, Prompt, PromptSet, is_clip, load_clips, load_prompt_set
from sprachbund.data.begun import begin
from sprachbund.data.manifest import INFO_FILE, ManifestWriter, refuse_other
from sprachbund.util.files import write_json
from sprachbund.util.progress import Progress, nothing

VERSION = "1"
MAX_DURATION_S = 30.0
UNHEARD = "unheard"
CLEANING = "cleaning.json"
PARTS = ("train", "dev", "test", UNHEARD)


def prepare(
    out: Path,
    source: Path | None = None,
    *,
    languages: Sequence[str] = LANGUAGES,
    max_duration_s: float = MAX_DURATION_S,
    progress: Progress = nothing,
) -> dict[str, Any]:
    """Write ``out/train``, ``out/dev``, ``out/test`` and ``out/unheard``, and ``out/cleaning.json``.

    ``source`` is a folder of .deb files or an unpacked tree; None fetches the packages with ``apt-get
    download``. ``unheard`` holds the speakers that are never trained on, every prompt marked with the split
    of its wording. Every utterance says in ``custom`` whether its ``words`` are "documented" or, for those
    speakers, "assumed": the wording of the core prompt of the same name, which often differs in long
    prompts; translations hold all the same. Recordings longer than ``max_duration_s`` are left out and
    counted. Returns what was written, by part; prompts that an earlier run wrote there are replaced.
    Raises SprachbundError when the packages cannot be found or read, or the folder holds another corpus.

    Args:
        out: folder of the corpus.
        source: packages; None fetches them.
        languages: BCP-47 tags.
        max_duration_s: longer recordings are left out.
        progress: called with recordings written and in all.
    """
    settings = {"corpus": "asterisk"}  # other languages replace what is there
    begin(out, settings, known=settings if (out / CLEANING).exists() else None)
    prompts = load_prompt_set(source, languages, cache=out / ".packages")
    cleaning = {language: dict(counts) for language, counts in prompts.cleaning.items()}
    write_json(out / CLEANING, cleaning)
    total = sum(prompt.duration_s <= max_duration_s for prompt in prompts.prompts)
    number = count(1)
    write = partial(_write_part, on_written=lambda: progress(next(number), total))
    written = {part: write(out / part, part, prompts, max_duration_s) for part in PARTS}
    return {"cleaning": cleaning, "parts": written}


def part_of(prompt: Prompt, prompts: PromptSet) -> str:
    """The manifest a prompt belongs to."""
    return UNHEARD if prompt.held_out else prompts.split_of_prompt(prompt.name)


def cleaning_table(cleaning: Mapping[str, Mapping[str, int]]) -> str:
    """Return the counts of each cleaning rule per language, as a table for people."""
    rules = sorted({rule for counts in cleaning.values() for rule in counts})
    width = max(map(len, rules), default=0)
    head = " " * width + "".join(f"{language:>6}" for language in cleaning)
    rows = (rule.ljust(width) + "".join(f"{c.get(rule, 0):6d}" for c in cleaning.values()) for rule in rules)
    return "\n".join([head, *rows])


def _write_part(
    folder: Path,
    part: str,
    prompts: PromptSet,
    max_duration_s: float,
    *,
    on_written: Callable[[], None],
) -> dict[str, Any]:
    mine = [prompt for prompt in prompts.prompts if part_of(prompt, prompts) == part]
    short = [prompt for prompt in mine if prompt.duration_s <= max_duration_s]
    _clear(folder, part)
    if not short:
        return {"utterances": 0, "left_out_too_long": len(mine)}
    writer = ManifestWriter(folder)
    for prompt in short:
        writer.add(
            prompt.load(),
            text=prompt.text,
            language=prompt.language,
            speaker=prompt.speaker,
            translations=prompts.translations(prompt.name, prompt.language),
            utterance_id=f"{prompt.speaker}-{prompt.name.replace('/', '-')}",
            custom={
                "prompt": prompt.name,
                "split": prompts.split_of_prompt(prompt.name),
                "kind": "clip" if is_clip(prompt.name) else "prompt",
                "words": "assumed" if prompt.held_out else "documented",
            },
        )
        on_written()
    writer.close({**_info(part, short), "left_out_too_long": len(mine) - len(short)})
    return {"utterances": len(short), "left_out_too_long": len(mine) - len(short)}


def write_composed(
    out: Path,
    prompts: PromptSet,
    *,
    split: str,
    num_utterances: int,
    seed: int = 0,
    speakers: Sequence[str] | None = None,
    clips: Mapping[str, Clips] | None = None,
) -> dict[str, Any]:
    """Write ``num_utterances`` composed utterances of ``split`` to the manifest directory ``out``.

    ``speakers`` names who speaks (default: all but the held-out ones); ``clips`` saves decoding them again.
    The same seed gives the same utterances. Raises SprachbundError when nothing can be composed.

    Args:
        out: manifest directory.
        prompts: prompts of all speakers.
        split: part of the corpus.
        num_utterances: number of utterances.
        seed: seed of all draws.
        speakers: names; None for all but the held-out ones.
        clips: recordings of each speaker; None decodes them.
    """
    from sprachbund.corpora.asterisk.compose import composed_utterances

    if clips is None:
        clips = load_clips(
            p for p in prompts.prompts if (p.speaker in speakers if speakers else not p.held_out)
        )
    stream = composed_utterances(clips, random.Random(seed), split, prompts=prompts, speakers=speakers)
    _clear(out, f"composed-{split}")
    writer = ManifestWriter(out)
    for index, made in zip(range(num_utterances), stream, strict=False):
        writer.add(
            made.samples,
            text=made.text,
            language=made.language,
            speaker=made.speaker,
            translations=made.translations,
            utterance_id=f"composed-{split}-{seed}-{index:06d}",
            custom={"split": split, "kind": f"composed {made.kind}"},
        )
    named = list(speakers or clips)
    info = {"seed": seed, **_info(f"composed-{split}", (p for p in prompts.prompts if p.speaker in named))}
    writer.close(info)
    return {"utterances": num_utterances}


def _clear(folder: Path, part: str) -> None:
    """Remove the corpus that an earlier run left. Raises SprachbundError: another one is there."""
    refuse_other(folder, f"asterisk/{part}")
    # What says that the corpus is whole goes first.
    for old in [folder / INFO_FILE, *folder.glob("cuts.*"), *folder.glob("audio.*"), *folder.glob("shard.*")]:
        old.unlink(missing_ok=True)


def _info(part: str, prompts: Iterable[Prompt]) -> dict[str, Any]:
    tags = {prompt.speaker for prompt in prompts}
    speakers = [speaker for speaker in SPEAKERS if speaker.tag in tags]
    return {
        "name": f"asterisk/{part}",
        "version": VERSION,
        "languages": sorted({speaker.language for speaker in speakers}),
        "licence": sorted({speaker.licence for speaker in speakers}),
        "attribution": {speaker.tag: f"{speaker.attribution} ({speaker.licence})" for speaker in speakers},
    }
