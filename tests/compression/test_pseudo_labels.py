"""Pseudo-labels: what a scripted teacher says comes out counted, and nothing is done twice or mixed."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sprachbund.audio.constants import SAMPLE_RATE, VAD_WINDOW
from sprachbund.cli.compress import run_labels
from sprachbund.compression import pseudo_labels
from sprachbund.compression.options import FilterOptions, LabelOptions, TeacherOptions
from sprachbund.compression.pseudo_labels import (
    KEPT,
    LIMIT,
    THERE,
    UNKNOWN_PAIR,
    LabelTeacher,
    check_outside,
    claim,
    open_source,
    pseudo_label,
)
from sprachbund.data.loading import collate
from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.data.synthesis import Voice, speak
from sprachbund.decoding.long_form import translate
from sprachbund.decoding.options import NONE, DecodingOptions, GuardOptions
from sprachbund.decoding.result import joined_text
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.hypotheses import one_line
from sprachbund.evaluation.lines import DecodingEvidence
from sprachbund.models.conformer import Conformer
from sprachbund.models.io import load
from sprachbund.text.identify import LanguageIdentifier
from sprachbund.util.computing import Computing
from tests.decoding.test_translate import Loudness
from tests.models.whisper_support import make_directory
from tests.training import made

IDENTIFIER = LanguageIdentifier(["en", "de"])
SURE = DecodingEvidence(mean_log_probability=-0.1, speech_probability=1.0)
GUESS = DecodingEvidence(mean_log_probability=-3.0, speech_probability=1.0)


class Script:
    """Says a text for each language; what it was asked for is kept."""

    def __init__(self, **said: tuple[str, DecodingEvidence]) -> None:
        self.said = {"en": ("one two", SURE), "de": ("eins zwei", SURE), **said}
        self.asked: list[tuple[int, tuple[str, ...], str | None]] = []

    def decode(
        self, sounds: Sequence[np.ndarray], targets: Sequence[Sequence[str]], sources: Sequence[str | None]
    ) -> Any:
        self.asked += [
            (len(s), tuple(t), source) for s, t, source in zip(sounds, targets, sources, strict=True)
        ]
        assert len({len(t) for t in targets}) == 1
        return [[self.said[target] for target in row] for row in targets]


@pytest.fixture(scope="module")
def teacher() -> Conformer:
    return made.make_model().eval()


def make_corpus(directory: Path, *, texts: bool, count: int = 6) -> Path:
    with ManifestWriter(directory) as writer:
        for i in range(count):
            writer.add(
                np.full(8000 + i, 0.1, np.float32),
                text="one two" if texts else "",
                language="en",
                speaker="s",
                utterance_id=f"u{i}",
                translations={"de": "von Hand"} if texts and i == 0 else {},
                custom={"kind": "test"},
            )
    return directory


def label(
    teacher: Any, script: Script, out: Path, *paths: Path, language: str | None = None, **options: Any
) -> Any:
    sources = [open_source(path, language, teacher.max_window_s) for path in paths]
    chosen = LabelOptions(**{"targets": ("de",), **options})
    known = LabelTeacher(family=teacher, labeller=script, identifier=IDENTIFIER)
    return pseudo_label(lambda: known, lambda: sources, out, chosen, name="script", settings={"teacher": "x"})


def test_audio_alone_gets_transcripts_and_translations(teacher: Conformer, tmp_path: Path) -> None:
    data = make_corpus(tmp_path / "data", texts=False)
    done = label(teacher, Script(), tmp_path / "out", data)
    assert done.counts == {"de": {KEPT: 6}, "en": {KEPT: 6}}
    assert (done.utterances, done.left_out) == (6, {})
    labelled = Manifest(tmp_path / "out")
    assert [u.id for u in labelled] == [f"u{i}" for i in range(6)]
    assert all(u.text == "one two" and u.translations == {"de": "eins zwei"} for u in labelled)
    assert labelled[3].custom == {"kind": "test", "pseudo_labels": {"en": -0.1, "de": -0.1}}
    np.testing.assert_array_equal(labelled.samples(3), Manifest(data).samples(3))


def test_texts_that_are_there_are_kept_unless_they_are_to_be_replaced(
    teacher: Conformer, tmp_path: Path
) -> None:
    data = make_corpus(tmp_path / "data", texts=True)
    done = label(teacher, Script(), tmp_path / "kept", data)
    assert done.counts == {"de": {KEPT: 5, THERE: 1}, "en": {THERE: 6}}
    assert Manifest(tmp_path / "kept")[0].translations == {"de": "von Hand"}
    done = label(teacher, Script(en=("one", SURE)), tmp_path / "new", data, replace=True)
    assert done.counts == {"de": {KEPT: 6}, "en": {KEPT: 6}}
    first = Manifest(tmp_path / "new")[0]
    assert (first.text, first.translations) == ("one", {"de": "eins zwei"})


def test_texts_of_an_earlier_labelling_stay_known_as_a_teachers(teacher: Conformer, tmp_path: Path) -> None:
    data, unsure = make_corpus(tmp_path / "data", texts=False), Script(de=("eins zwei", GUESS))

    def labelled(name: str, script: Script, corpus: Path, **options: Any) -> Any:
        label(teacher, script, tmp_path / name, corpus, **options)
        first = Manifest(tmp_path / name)[0]
        return first.text, first.translations, first.custom["pseudo_labels"]

    transcribed = "one two", {}, {"en": -0.1}
    assert labelled("transcripts", Script(), data, targets=("en",)) == transcribed
    assert labelled("dropped", unsure, tmp_path / "transcripts") == transcribed
    both = "one two", {"de": "eins zwei"}, {"en": -0.1, "de": -0.1}
    assert labelled("both", Script(), tmp_path / "dropped") == both
    # What is written anew and dropped is there no more, so neither is its number.
    assert labelled("anew", unsure, tmp_path / "both", replace=True) == transcribed


def test_what_is_dropped_is_counted_and_written_down(teacher: Conformer, tmp_path: Path) -> None:
    data = make_corpus(tmp_path / "data", texts=False)
    done = label(teacher, Script(de=("eins zwei", GUESS)), tmp_path / "out", data)
    assert done.counts == {"de": {"guessing": 6}, "en": {KEPT: 6}}
    record = json.loads((tmp_path / "out" / "labels.00000.json").read_text())
    assert record["dropped"][0] == {
        "id": "u0",
        "target": "de",
        "text": "eins zwei",
        "reason": "guessing: mean log-probability -3.00",
    }
    with pytest.raises(
        SprachbundError, match=r"no utterance of .* is left \(6 no text is left, 12 guessing\)"
    ):
        label(teacher, Script(de=("eins", GUESS), en=("one", GUESS)), tmp_path / "none", data)


def test_an_utterance_without_a_transcript_still_teaches_its_translation(
    teacher: Conformer, tmp_path: Path
) -> None:
    """The row in its own language and the CTC loss are left out; neither is trained to be empty."""
    data = make_corpus(tmp_path / "data", texts=False)
    done = label(teacher, Script(en=("one two", GUESS)), tmp_path / "out", data)
    assert done.counts == {"de": {KEPT: 6}, "en": {"guessing": 6}}
    assert Manifest(tmp_path / "out")[0].text_in("en") is None
    corpus = made.make_training_data(tmp_path / "out")
    example = corpus[(0, 0, 1.0)]
    assert [row[0] for row in example.rows] == [teacher.tokenizer.language_id("de")]
    with torch.no_grad():
        assert float(teacher.loss(collate([example], 2)).heads["ctc"].total) == 0.0


def test_pairs_that_the_teacher_lacks_are_counted(
    teacher: Conformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "pairs", lambda: frozenset({("en", "en"), ("de", "de"), ("de", "en")}))
    data = make_corpus(tmp_path / "data", texts=False, count=2)
    with ManifestWriter(tmp_path / "more") as writer:
        writer.add(np.ones(8000, np.float32), text="", language="de", speaker="", utterance_id="d")
    with pytest.raises(SprachbundError, match=r"does not write fr for speech in de, en; .* it writes de, en"):
        label(teacher, Script(), tmp_path / "no", data, tmp_path / "more", targets=("fr",))
    script = Script()
    done = label(teacher, script, tmp_path / "out", data, tmp_path / "more", targets=("de",))
    assert done.counts == {"de": {UNKNOWN_PAIR: 2, KEPT: 1}, "en": {KEPT: 2}}
    assert {asked[1:] for asked in script.asked} == {(("en",), "en"), (("de",), "de")}
    assert [u.id for u in Manifest(tmp_path / "out")] == ["0-u0", "0-u1", "1-d"]


def test_speech_that_the_teacher_does_not_hear_is_refused(teacher: Conformer, tmp_path: Path) -> None:
    with ManifestWriter(tmp_path / "data") as writer:
        writer.add(np.ones(8000, np.float32), text="x", language="fr", speaker="", utterance_id="f")
    with pytest.raises(
        SprachbundError, match="speech in fr, which the teacher does not hear; it hears de, en"
    ):
        label(teacher, Script(), tmp_path / "out", tmp_path / "data")


def test_silence_is_passed_on_and_what_is_too_long_is_not(teacher: Conformer, tmp_path: Path) -> None:
    with ManifestWriter(tmp_path / "data") as writer:
        writer.add(np.zeros(8000, np.float32), text="", language="", speaker="", utterance_id="silence")
        writer.add(np.ones(16_000 * 16, np.float32), text="", language="en", speaker="", utterance_id="long")
        writer.add(np.ones(8000, np.float32), text="", language="en", speaker="", utterance_id="short")
    script = Script()
    done = label(teacher, script, tmp_path / "out", tmp_path / "data")
    assert done.left_out == {"too long": 1}
    assert [(u.id, u.language) for u in Manifest(tmp_path / "out")] == [("silence", ""), ("short", "en")]
    assert [asked[0] for asked in script.asked] == [8000]


def test_broken_off_it_goes_on_with_the_next_shard(teacher: Conformer, tmp_path: Path) -> None:
    data = make_corpus(tmp_path / "data", texts=False)
    whole = label(teacher, Script(), tmp_path / "whole", data, shard_s=1.1)

    class Breaks(Script):
        def decode(self, *given: Any) -> Any:
            if len(self.asked) >= 2:
                raise KeyboardInterrupt
            return super().decode(*given)

    with pytest.raises(KeyboardInterrupt):
        label(teacher, Breaks(), tmp_path / "broken", data, shard_s=1.1)
    rest = Script()
    assert label(teacher, rest, tmp_path / "broken", data, shard_s=1.1) == whole
    assert len(rest.asked) == 4
    for path in sorted((tmp_path / "whole").glob("*.[jw]*")):
        if path.name != "pseudo_labels.json":
            assert path.read_bytes() == (tmp_path / "broken" / path.name).read_bytes(), path.name
    idle = Script()
    assert label(teacher, idle, tmp_path / "broken", data, shard_s=1.1) == whole
    assert not idle.asked


def test_labels_of_other_settings_never_mix(teacher: Conformer, tmp_path: Path) -> None:
    data = make_corpus(tmp_path / "data", texts=False)
    label(teacher, Script(), tmp_path / "out", data)
    with pytest.raises(
        SprachbundError, match=r"begun with options\.filters\.max_length_ratio 3\.0, not 9\.0"
    ):
        label(teacher, Script(), tmp_path / "out", data, filters=FilterOptions(max_length_ratio=9.0))
    with pytest.raises(SprachbundError, match="is no corpus of labels; name a new folder"):
        label(teacher, Script(), data, data)


def test_recordings_are_cut_into_utterances_in_their_language(teacher: Conformer, tmp_path: Path) -> None:
    folder = tmp_path / "sounds" / "deep"
    folder.mkdir(parents=True)
    said = np.concatenate([speak("one two three", Voice(language="en")), np.zeros(16_000, np.float32)] * 2)
    soundfile.write(folder / "talk.wav", said, 16_000)
    (folder / "broken.wav").write_bytes(b"RIFF nothing")
    (folder / "notes.txt").write_text("no sound")
    done = label(teacher, Script(), tmp_path / "out", tmp_path / "sounds", language="en")
    assert done.left_out == {"unreadable": 1}
    actual = list(Manifest(tmp_path / "out"))
    assert len(actual) == 2
    assert all(u.id.startswith("deep-talk.wav-0") and u.language == "en" for u in actual)
    assert actual[1].custom["start_s"] > actual[0].custom["start_s"] + actual[0].duration_s


def test_recordings_whose_utterances_would_have_one_id_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sounds" / "a").mkdir(parents=True)
    for name in ("a/b.wav", "a-b.wav"):
        soundfile.write(tmp_path / "sounds" / name, np.zeros(1600), 16_000)
    with pytest.raises(SprachbundError) as refused:
        open_source(tmp_path / "sounds", "en", 15.0)
    assert all(str(tmp_path / "sounds" / name) in str(refused.value) for name in ("a/b.wav", "a-b.wav"))
    (tmp_path / "sounds" / "a-b.wav").rename(tmp_path / "sounds" / "c.wav")
    assert len(open_source(tmp_path / "sounds", "en", 15.0).durations_s) == 2


def test_a_language_nobody_names_is_the_one_the_teacher_hears(teacher: Conformer, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "talk.wav", speak("one two three", Voice(language="en")), 16_000)
    loose, strict = (FilterOptions(min_language_probability=p) for p in (0.0, 1.0))
    label(teacher, Script(), tmp_path / "out", tmp_path / "talk.wav", filters=loose)
    (actual,) = list(Manifest(tmp_path / "out"))
    with torch.no_grad():
        samples = Manifest(tmp_path / "out").samples(0)
        heard = teacher.language_log_probs(teacher.encode(teacher.features([samples])))[0]
    assert actual.language == teacher.source_languages[int(heard.argmax())]
    with pytest.raises(SprachbundError, match="1 language unsure"):
        label(teacher, Script(), tmp_path / "none", tmp_path / "talk.wav", filters=strict)


@pytest.mark.parametrize(
    ("name", "language", "message"),
    [
        ("nowhere", None, "is not there"),
        ("empty", None, "holds no audio"),
        ("data", "en", "says itself what is spoken; leave en out"),
        ("parent", None, "holds the corpora .*/dev, .*/train; name one of them"),
    ],
)
def test_sources_that_are_none_are_refused(
    name: str, language: str | None, message: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    make_corpus(tmp_path / "data", texts=True)
    for part in ("train", "dev"):
        make_corpus(tmp_path / "parent" / part, texts=True)
    with pytest.raises(SprachbundError, match=message):
        open_source(tmp_path / name, language, 15.0)


def _scripted() -> LabelTeacher:
    return LabelTeacher(family=made.make_model().eval(), labeller=Script(), identifier=IDENTIFIER)


def _opened(path: Path) -> Any:
    return [open_source(path, None, 15.0)]


@pytest.mark.slow
@pytest.mark.parametrize("ray", [None, "local"], ids=["processes", "a_ray_cluster"])
def test_several_processes_write_the_same_bytes(teacher: Conformer, tmp_path: Path, ray: str | None) -> None:
    if ray is not None:
        pytest.importorskip("ray")
    data = make_corpus(tmp_path / "data", texts=False)
    whole = label(teacher, Script(), tmp_path / "one", data, shard_s=1.1)
    seen: list[tuple[int, int]] = []
    actual = pseudo_label(
        _scripted,
        partial(_opened, data),
        tmp_path / "two",
        LabelOptions(targets=("de",), shard_s=1.1),
        name="script",
        settings={"teacher": "x"},
        computing=Computing(workers=2, ray=ray),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert actual == whole
    assert (seen[0], seen[-1]) == ((0, 3), (3, 3))
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert {"labels.00002.json", "cuts.00002.jsonl"} <= files
    for name in files:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_labels_are_the_texts_that_the_teacher_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the timestamps of a Whisper model, segments joined; the options are named in the corpus."""
    monkeypatch.setattr("sprachbund.evaluation.hypotheses.VoiceActivity", Loudness)
    make_directory(tmp_path / "teacher")
    data = tmp_path / "data"
    with ManifestWriter(data) as writer:
        for seed in range(3):
            noise = np.random.default_rng(seed).normal(size=40 * VAD_WINDOW) * 0.3
            name = f"u{seed}"
            writer.add(noise.astype(np.float32), text="", language="de", speaker="", utterance_id=name)
    # Random weights write nothing that is worth teaching.
    monkeypatch.setattr(pseudo_labels, "why_dropped", lambda *label, **around: None)
    options = LabelOptions(targets=("en",), replace=True)
    run_labels(str(tmp_path / "teacher"), [data], tmp_path / "out", options, TeacherOptions())
    family = load(tmp_path / "teacher")
    served = DecodingOptions(draft=NONE, timestamps=True, guard=GuardOptions(enabled=False))
    for number, utterance in enumerate(Manifest(tmp_path / "out")):
        actual = translate(
            family,
            Manifest(data).samples(number),
            ["de", "en"],
            "de",
            served,
            sample_rate=SAMPLE_RATE,
            activity=Loudness(),
        )
        texts = {"de": utterance.text, **utterance.translations}
        shown = {target: one.segments or one.dropped for target, one in actual.items()}
        assert texts == {target: one_line(joined_text(segments)) for target, segments in shown.items()}
    settings = json.loads((tmp_path / "out" / "pseudo_labels.json").read_text())
    assert settings["decoding"] == json.loads(json.dumps(asdict(served)))


def test_labels_are_of_the_speech_that_they_were_begun_with(teacher: Conformer, tmp_path: Path) -> None:
    """Shards are numbered by pieces: one that is whole would stand for other pieces when speech is added."""
    folder, out = tmp_path / "data", tmp_path / "out"
    make_corpus(folder, texts=False, count=4)
    label(teacher, Script(), out, folder, shard_s=0.6)
    assert label(teacher, Script(), out, folder, shard_s=0.6).utterances == 4
    settings = json.loads((out / "pseudo_labels.json").read_text())
    del settings["sound"]
    settings["content"] = ["0" * 64]  # as an earlier version wrote it, of sizes
    (out / "pseudo_labels.json").write_text(json.dumps(settings))
    assert label(teacher, Script(), out, folder, shard_s=0.6).utterances == 4
    label(teacher, Script(), tmp_path / "new", folder, shard_s=0.6)
    shutil.rmtree(folder)
    make_corpus(folder, texts=False, count=5)
    with pytest.raises(SprachbundError, match=r"new was begun with another sound \(SHA-256 "):
        label(teacher, Script(), tmp_path / "new", folder, shard_s=0.6)


def test_labels_go_on_with_another_size_of_batches(teacher: Conformer, tmp_path: Path) -> None:
    """After an end for want of memory, the same command has smaller ones."""
    data, out = make_corpus(tmp_path / "data", texts=False), tmp_path / "out"
    label(teacher, Script(), out, data, batch_size=4)
    assert label(teacher, Script(), out, data, batch_size=2).utterances == 6
    settings = json.loads((out / "pseudo_labels.json").read_text())
    settings["options"]["batch_size"] = 16  # as an earlier version wrote it
    (out / "pseudo_labels.json").write_text(json.dumps(settings))
    assert label(teacher, Script(), out, data, batch_size=2).utterances == 6
    with pytest.raises(SprachbundError, match=r"was begun with options\.shard_s "):
        label(teacher, Script(), out, data, shard_s=5.0)


def test_recordings_without_speech_are_said_to_have_none(teacher: Conformer, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    soundfile.write(tmp_path / "data" / "silence.wav", np.zeros(16_000, np.float32), SAMPLE_RATE)
    with pytest.raises(SprachbundError, match=r"no speech was heard in .*data; name recordings"):
        label(teacher, Script(), tmp_path / "out", tmp_path / "data", language="en")


def test_recordings_that_are_added_or_recorded_again_are_seen(tmp_path: Path) -> None:
    for name in ("b.wav", "c.wav"):
        soundfile.write(tmp_path / name, np.zeros(800, np.float32), SAMPLE_RATE)
    before = open_source(tmp_path, None, 30.0).digest
    assert open_source(tmp_path, None, 30.0).digest == before
    soundfile.write(tmp_path / "a.wav", np.zeros(800, np.float32), SAMPLE_RATE)
    added = open_source(tmp_path, None, 30.0).digest
    soundfile.write(tmp_path / "a.wav", np.full(800, 0.1, np.float32), SAMPLE_RATE)
    assert len({before, added, open_source(tmp_path, None, 30.0).digest}) == 3


def test_labels_begun_before_the_options_were_named_go_on_where_they_are_the_same(tmp_path: Path) -> None:
    named = {"teacher": "x", "decoding": asdict(DecodingOptions(timestamps=False))}
    claim(tmp_path / "out", {"teacher": "x"})
    claim(tmp_path / "out", named)
    with pytest.raises(SprachbundError, match=r"was begun with decoding\."):
        claim(tmp_path / "out", {**named, "decoding": asdict(DecodingOptions(timestamps=True))})


def test_labels_begun_before_there_was_an_option_go_on_where_it_is_not_given(tmp_path: Path) -> None:
    before = {name: value for name, value in asdict(DecodingOptions()).items() if name != "tempos"}
    claim(tmp_path / "out", {"decoding": before})
    claim(tmp_path / "out", {"decoding": asdict(DecodingOptions())})
    with pytest.raises(SprachbundError, match=r"was begun with decoding\."):
        claim(tmp_path / "out", {"decoding": asdict(DecodingOptions(tempos=(1.3, 1.6)))})


def test_labels_begun_before_they_were_dropped_by_doubt_go_on_where_there_is_no_limit(tmp_path: Path) -> None:
    claim(tmp_path / "out", {"teacher": "x"})
    claim(tmp_path / "out", {"teacher": "x", LIMIT: 1.0})
    with pytest.raises(SprachbundError, match=r"was begun with max_out_of_domain 1\.0, not 0\.9"):
        claim(tmp_path / "out", {"teacher": "x", LIMIT: 0.9})


def test_labels_have_no_place_in_the_folder_of_the_recordings(tmp_path: Path) -> None:
    """They would be taken for recordings, or for corpora, when the work goes on."""
    recordings, corpus = tmp_path / "recordings", make_corpus(tmp_path / "corpus", texts=False)
    recordings.mkdir()
    for out in (recordings, recordings / "labels", recordings / "deep" / "labels"):
        with pytest.raises(
            SprachbundError, match=rf"--out {out} is in {recordings}, which is to be labelled"
        ):
            check_outside(out, [corpus, recordings])
    check_outside(tmp_path / "recordings-labels", [recordings])
    check_outside(corpus / "labels", [corpus])  # which holds its shards alone
