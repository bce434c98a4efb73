"""What is evaluated, and what pseudo-labels hold, is what is served: the same text for the same speech."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sprachbund.audio.constants import SAMPLE_RATE, VAD_WINDOW
from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.decoding.languages import UNDETERMINED
from sprachbund.decoding.long_form import translate
from sprachbund.decoding.options import TRANSCRIBE, DecodingOptions, GuardOptions
from sprachbund.decoding.result import Translation, joined_text
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.hypotheses import BatchDecoder, one_line
from sprachbund.evaluation.lines import Line
from sprachbund.models.base import Family
from tests.decoding.families import FAMILIES, SLOW
from tests.decoding.test_translate import LENIENT, Loudness
from tests.decoding.tiny_family import TinyFamily
from tests.evaluation.scores import translate_manifest

OPEN = DecodingOptions(max_tokens=12, guard=GuardOptions(enabled=False))


@pytest.fixture(autouse=True)
def loudness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation hears speech where `translate` does in these tests: in all of the noise, so that it is one span."""
    monkeypatch.setattr("sprachbund.evaluation.hypotheses.VoiceActivity", Loudness)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FAMILIES],
)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return FAMILIES[request.param](tmp_path_factory.mktemp("family"))


def sound(duration_s: float, seed: int) -> np.ndarray:
    """Noise that fills whole windows of the detector."""
    count = int(duration_s * SAMPLE_RATE) // VAD_WINDOW * VAD_WINDOW
    return (np.random.default_rng(seed).normal(size=count) * 0.3).astype(np.float32)


def corpus(directory: Path, source: str, targets: Sequence[str], count: int = 3) -> Manifest:
    with ManifestWriter(directory) as writer:
        for seed in range(count):
            writer.add(
                sound(1.2 + 0.2 * seed, seed),
                text="said",
                language=source,
                speaker="",
                utterance_id=f"u{seed}",
                translations={target: "written" for target in targets if target != source},
            )
    return Manifest(directory)


def served(
    family: Family, samples: np.ndarray, targets: Sequence[str], source: str | None, options: DecodingOptions
) -> dict[str, Translation]:
    return translate(family, samples, targets, source, options, sample_rate=SAMPLE_RATE, activity=Loudness())


def evaluated(
    family: Family, manifest: Manifest, targets: Sequence[str], options: DecodingOptions
) -> dict[tuple[str, str], Line]:
    return {(x.id, x.target): x for x in translate_manifest(family, manifest, targets, options)}


def known(family: Family) -> tuple[str, list[str]]:
    """A source language with most targets, and up to three of these."""
    pairs = family.pairs()
    source = max(family.source_languages, key=lambda s: sum(p[0] == s for p in pairs))
    return source, sorted(t for s, t in pairs if s == source)[:3]


@pytest.mark.parametrize("guarded", [False, True])
def test_what_is_evaluated_is_what_is_served(family: Family, tmp_path: Path, guarded: bool) -> None:
    source, targets = known(family)
    manifest = corpus(tmp_path / "corpus", source, targets)
    options = DecodingOptions(max_tokens=12) if guarded else OPEN
    lines = evaluated(family, manifest, targets, options)
    assert len(lines) == len(manifest) * len(targets)
    for number in range(len(manifest)):
        translations = served(family, manifest.samples(number), targets, source, options)
        for target in targets:
            line, translation = lines[f"u{number}", target], translations[target]
            assert line.guarded == one_line(translation.text)
            kept, dropped = translation.segments, translation.dropped
            assert (line.evidence.dropped is None) == bool(kept)
            if not kept:
                assert line.evidence.dropped == dropped[0].dropped
            if not dropped:
                assert line.hypothesis == line.guarded
    if not guarded:
        assert any(line.hypothesis for line in lines.values())


@pytest.mark.slow
def test_a_language_that_nobody_named_is_the_same(family: Family) -> None:
    pairs, heard = family.pairs(), family.source_languages
    targets = sorted({t for _, t in pairs if all((s, t) in pairs for s in heard)})[:2]
    asked = [*targets, *([TRANSCRIBE] if all((s, s) in pairs for s in heard) else [])]
    if not asked:
        pytest.skip("no target is known from every language")
    sounds = [sound(1.3, seed) for seed in range(3)]
    fused = family.capabilities.fuse_language is not None
    if fused or family.name in ("canary", "cohere_asr"):  # they have to be told the language spoken
        with pytest.raises(SprachbundError, match="name the source language"):
            served(family, sounds[0], asked, None, OPEN)
        return
    rows = BatchDecoder(family, OPEN).decode(
        sounds, [["" if t == TRANSCRIBE else t for t in asked]] * 3, [None] * 3
    )
    for samples, row in zip(sounds, rows, strict=True):
        translations = served(family, samples, asked, None, OPEN)
        for target, (text, evidence) in zip(asked, row, strict=True):
            segments = sorted(
                (*translations[target].segments, *translations[target].dropped), key=lambda s: s.start_s
            )
            assert text == one_line(joined_text(segments))
            assert (evidence.language or UNDETERMINED) == translations[target].source_language


def test_a_whisper_model_is_evaluated_with_the_timestamps_it_is_served_with(tmp_path: Path) -> None:
    family = FAMILIES["whisper"](tmp_path)
    assert family.capabilities.timestamps is not None
    manifest = corpus(tmp_path / "corpus", "de", ["de", "en"])
    timed, plain = (
        evaluated(
            family, manifest, ["de", "en"], DecodingOptions(timestamps=on, max_tokens=12, guard=LENIENT)
        )
        for on in (True, False)
    )
    assert any(timed[key].hypothesis != plain[key].hypothesis for key in timed)
    for number in range(len(manifest)):
        for on, lines in ((True, timed), (False, plain)):
            options = DecodingOptions(timestamps=on, max_tokens=12, guard=LENIENT)
            translations = served(family, manifest.samples(number), ["de", "en"], "de", options)
            for target, translation in translations.items():
                assert lines[f"u{number}", target].guarded == one_line(translation.text)


def test_text_that_the_guard_drops_in_part_is_evaluated_in_part(tmp_path: Path) -> None:
    """Segments are evaluated one by one, and the score sees those that a user sees."""
    family = TinyFamily(seed=3, num_times=30)
    guard = replace(LENIENT, max_characters_per_s=5.0)
    options = DecodingOptions(max_tokens=16, guard=guard)
    manifest = corpus(tmp_path / "corpus", "de", ["en"], count=12)
    lines = evaluated(family, manifest, ["en"], options)
    in_part = 0
    for number in range(len(manifest)):
        translation = served(family, manifest.samples(number), ["en"], "de", options)["en"]
        line = lines[f"u{number}", "en"]
        assert line.guarded == line.behind_guard().hypothesis == one_line(translation.text)
        assert Line.from_json(line.to_json().encode()) == line
        if translation.segments and translation.dropped:
            in_part += 1
            assert line.evidence.dropped is None
            assert line.guarded != line.hypothesis
    assert in_part
