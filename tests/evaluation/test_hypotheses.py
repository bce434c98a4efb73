import shutil

import numpy as np
import pytest

from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.decoding.options import DecodingOptions
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.hypotheses import make_plan
from sprachbund.models.io import load
from sprachbund.text.languages import UnknownLanguageError
from tests.evaluation.scores import translate_manifest

OPTIONS = DecodingOptions(max_tokens=10)


@pytest.fixture(scope="module")
def model(model_directory):
    return load(model_directory)


@pytest.fixture(scope="module")
def manifest(corpus):
    return Manifest(corpus)


@pytest.fixture(scope="module")
def lines(model, manifest):
    return list(translate_manifest(model, manifest, None, OPTIONS, batch_size=5))


def test_every_utterance_into_every_language_it_has_text_in(lines, manifest):
    wanted = [
        (u.id, u.language, t, u.text_in(t))
        for u in manifest
        if u.language
        for t in ("de", "en", "ru")
        if u.text_in(t)
    ]
    assert [(x.id, x.source, x.target, x.reference) for x in lines] == wanted
    assert {x.corpus for x in lines} == {"corpus"}
    assert lines[0].kind == "kind-0"
    assert lines[0].speaker == "speaker-0"
    assert lines[0].transcript == "der Zug fährt am Mittag"


def test_batches_do_not_change_what_is_written(model, manifest, lines):
    alone = list(translate_manifest(model, manifest, None, OPTIONS, batch_size=1))
    assert [(x.id, x.target, x.hypothesis) for x in alone] == [(x.id, x.target, x.hypothesis) for x in lines]


def test_what_is_left_out_is_counted(model, manifest):
    plan = make_plan(model, manifest)
    assert plan.without_speech == 1
    assert plan.without_reference == {("en", "ru"): 1}
    assert plan.num_lines == 12 * 3 - 1
    assert plan.over_limit == 0


def test_a_limit_is_spread_over_the_corpus(model, manifest):
    plan = make_plan(model, manifest, ["German"], limit=4)
    assert [job.index for job in plan.jobs] == [0, 4, 8]  # the last of the four is without speech
    assert plan.over_limit == 9
    assert {job.targets for job in plan.jobs} == {("de",)}


def test_speech_in_other_languages_is_left_out_before_the_limit(model, manifest):
    spoken = manifest.languages.tolist()
    plan = make_plan(model, manifest, ["en"], 3, ["German"])
    german = [index for index, tag in enumerate(spoken) if tag == "de"]
    assert len(german) > 3
    assert [job.index for job in plan.jobs] == [german[0], german[round((len(german) - 1) / 2)], german[-1]]
    assert plan.other_sources == len(spoken) - len(german)
    assert plan.over_limit == len(german) - 3
    with pytest.raises(SprachbundError, match=r"holds speech in .*, not in all of tlh; choose .* --from"):
        make_plan(model, manifest, None, None, ["tlh"])


def test_the_guard_is_recorded_and_the_text_kept(lines):
    assert {x.evidence.dropped for x in lines} == {"no speech: voice activity 0.00"}  # the sound is noise
    assert any(x.hypothesis for x in lines)
    assert {x.guarded for x in lines} == {""}
    assert all(x.evidence.num_tokens <= 10 for x in lines)


def test_pairs_the_model_does_not_know_are_counted_or_refused(model, tmp_path):
    with ManifestWriter(tmp_path) as writer:
        sound = np.zeros(8000, np.float32)
        writer.add(
            sound,
            text="uno",
            language="es",
            speaker="",
            utterance_id="a",
            translations={"en": "one", "it": "uno"},
        )
        writer.add(
            sound,
            text="one",
            language="en",
            speaker="",
            utterance_id="b",
            translations={"it": "uno", "de": " "},
        )
    plan = make_plan(model, Manifest(tmp_path))
    assert dict(plan.unknown_pairs) == {("es", "es"): 1, ("es", "en"): 1, ("es", "it"): 1, ("en", "it"): 1}
    assert plan.without_reference[("en", "de")] == 1  # white space is no reference
    with pytest.raises(SprachbundError, match="language 'it' is not among"):
        make_plan(model, Manifest(tmp_path), ["it"])
    with pytest.raises(SprachbundError, match="nothing to evaluate into ru"):
        make_plan(model, Manifest(tmp_path), ["ru"])


def test_a_corpus_in_a_language_that_the_model_does_not_hear_is_refused_with_those_it_hears(model, tmp_path):
    with ManifestWriter(tmp_path) as writer:
        writer.add(
            np.zeros(1600, np.float32),
            text="ein",
            language="cy",
            speaker="",
            utterance_id="a",
            translations={"en": "one"},
        )
    with pytest.raises(
        UnknownLanguageError, match=r"the speech is in cy \(Welsh\), and the model hears .*en \(Engl"
    ):
        make_plan(model, Manifest(tmp_path))


def test_sounds_longer_than_the_window_are_counted(model, manifest, monkeypatch):
    monkeypatch.setattr(model, "max_window_s", 1.0, raising=False)
    plan = make_plan(model, manifest)
    assert plan.too_long == sum(u.duration_s > 1.0 and bool(u.language) for u in manifest) > 0
    monkeypatch.setattr(model, "max_window_s", 0.01, raising=False)
    spoken = sum(bool(u.language) for u in manifest)
    with pytest.raises(SprachbundError, match=rf"{spoken} utterances longer than 0\.01 s"):
        make_plan(model, manifest)


def test_missing_and_short_audio_is_named(model, corpus, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(corpus, broken)
    (broken / "audio.00001.wav").unlink()
    with pytest.raises(SprachbundError, match=r"audio\.00001\.wav does not exist; copy the corpus again"):
        list(translate_manifest(model, Manifest(broken), ["de"], OPTIONS))
    audio = broken / "audio.00000.wav"
    shutil.copy(corpus / "audio.00001.wav", broken)
    audio.write_bytes(audio.read_bytes()[:20_000])
    with pytest.raises(SprachbundError, match=r"audio\.00000\.wav is .* s long, not .* s as its head says"):
        list(translate_manifest(model, Manifest(broken), ["de"], OPTIONS, limit=2))
