"""Calibration finds out what separates right texts from wrong ones, and says what its threshold drops."""

import json
import math
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

import sprachbund
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.load import load as load_audio
from sprachbund.cli import main
from sprachbund.data.manifest import ManifestWriter
from sprachbund.errors import SprachbundError
from sprachbund.evaluation import calibration
from sprachbund.evaluation.calibration import (
    Observation,
    _networks,
    collect,
    fit,
    folds,
    in_recordings,
    log_odds,
    measure,
    probabilities,
    read_sounds,
    speaker_circles,
)
from sprachbund.evaluation.options import CalibrationOptions
from sprachbund.models.base import use_tier
from sprachbund.models.calibration import DOMAIN_FILE, Domain, probability
from sprachbund.models.hub import bundled_directory
from sprachbund.models.io import content_hash
from tests.decoding.test_translate import Loudness
from tests.streaming.test_by_frames import tiny_transducer

WIDTH = 6


def observations(seed: int, count: int = 400, apart: float = 3.0) -> list[Observation]:
    """Half right; the states of wrong texts lie `apart` in one direction, and their log-probabilities a little."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        wrong = number % 2 == 1
        state = rng.normal(size=WIDTH) + (apart * wrong * np.eye(WIDTH)[2])
        made.append(
            Observation(
                group="music" if wrong else "phrases",
                plain=True,
                has_text=not wrong,
                written=True,
                chrf=0.0 if wrong else 90.0,
                sources=(f"sound {number}" if wrong else f"speaker {number // 2 % 8}",),
                signals={"mean_log_probability": rng.normal(-0.4 - 0.1 * wrong, 0.1)},
                state=state.astype(np.float32),
            )
        )
    return made


@pytest.fixture(autouse=True)
def few_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two in place of three for each fold: a fit takes seconds, however little it is fitted on."""
    monkeypatch.setattr(calibration, "_NETWORKS", 2)


@cache
def fitted(apart: float = 3.0) -> Domain:
    """On 400 observations; a fit takes seconds, so tests share it."""
    return fit(observations(0, apart=apart), CalibrationOptions())


def test_the_threshold_drops_the_share_of_right_texts_that_was_asked_for():
    domain = fit(observations(0, 1000), CalibrationOptions(max_dropped=0.1))
    held_out = observations(1, 2000)
    p = probabilities(held_out, domain)
    right = np.array([one.understood for one in held_out])
    assert (p[right] > domain.threshold).mean() == pytest.approx(0.1, abs=0.04)
    assert roc_auc_score(~right, p) > 0.95


def test_the_written_weights_are_those_of_the_network():
    seen, domain = observations(0), fitted()
    for one, p in zip(seen[:20], probabilities(seen, domain), strict=False):
        log_odds = domain.bias
        for unit in domain.hidden:
            given = one.state @ np.array(unit.encoder) + one.signals[
                "mean_log_probability"
            ] * unit.signals.get("mean_log_probability", np.nan)
            log_odds += unit.weight * max(0.0, unit.bias + given)
        assert probability(log_odds) == pytest.approx(p, abs=1e-6)
    inputs = np.array([[one.signals["mean_log_probability"], *one.state] for one in seen])
    wrong = np.array([not one.understood for one in seen])
    networks = _networks(inputs, wrong, CalibrationOptions().seed)
    assert len(domain.hidden) == 16 * len(networks)
    wanted = expit(np.mean([logit(one.predict_proba(inputs)[:, 1]) for one in networks], axis=0))
    np.testing.assert_allclose(
        probabilities(seen, domain), wanted, atol=1e-3
    )  # weights are rounded to five digits
    influence = np.abs([unit.weight * np.array(unit.encoder) for unit in domain.hidden]).sum(0)
    assert np.argmax(influence) == 2


def test_what_no_line_separates_is_told_apart():
    """Right texts lie between wrong ones on both sides."""
    rng = np.random.default_rng(0)
    seen = []
    for one in observations(0, 1200, apart=0.0):
        wrong = not one.has_text
        state = rng.normal(size=WIDTH)
        state[2] = rng.choice([-3.0, 3.0]) if wrong else rng.normal(scale=0.5)
        seen.append(replace(one, state=state.astype(np.float32)))
    held_out = seen[600:]
    p = probabilities(held_out, fit(seen[:600], CalibrationOptions()))
    assert roc_auc_score([not one.has_text for one in held_out], p) > 0.95


def test_measured_rates_are_those_counted_by_hand():
    domain = fitted()
    held_out = observations(1)
    p = probabilities(held_out, domain)
    rows = {row["sound"]: row for row in measure(held_out, domain)["rows"]}
    kept_music = sum(
        1 for one, q in zip(held_out, p, strict=True) if not one.has_text and q <= domain.threshold
    )
    assert rows["music"]["wrong_text_before_%"] == 100.0
    assert rows["music"]["wrong_text_now_%"] == pytest.approx(100 * kept_music / 200, abs=0.06)
    assert rows["phrases"]["wrong_text_before_%"] == 0.0
    low, high = binomtest(kept_music, 200).proportion_ci(method="wilson")
    assert rows["music"]["wrong_text_now_95%"] == f"{100 * low:.1f} to {100 * high:.1f}"
    assert rows["music"]["dropped_though_understood_95%"] == "-"
    dropped = sum(1 for one, q in zip(held_out, p, strict=True) if one.has_text and q > domain.threshold)
    low, high = binomtest(dropped, 200).proportion_ci(method="wilson")
    assert rows["phrases"]["dropped_though_understood_95%"] == f"{100 * low:.1f} to {100 * high:.1f}"
    doubtful = {
        has_text: sum(
            1
            for one, q in zip(held_out, p, strict=True)
            if one.has_text == has_text and 0.5 < q <= domain.threshold
        )
        for has_text in (False, True)
    }
    assert rows["music"]["wrong_without_warning_%"] == pytest.approx(
        100 * (kept_music - doubtful[False]) / 200, abs=0.06
    )
    assert rows["phrases"]["understood_with_warning_%"] == pytest.approx(100 * doubtful[True] / 200, abs=0.06)
    signals = {row["signal"]: row["area_under_curve"] for row in measure(held_out, domain)["signals"]}
    assert signals["all"] >= signals["mean log probability"]


@pytest.mark.filterwarnings("error")
def test_texts_of_one_kind_or_none_are_measured():
    """As of a corpus of noise alone, of which the rest of the guard lets nothing pass."""
    domain, seen = fitted(), observations(1)
    right, wrong = ([one for one in seen if one.has_text == kind] for kind in (True, False))
    for some in (right, wrong, [replace(one, written=False) for one in wrong]):
        measured = measure(some, domain)
        assert {row["area_under_curve"] for row in measured["signals"]} == {"-"}
        json.dumps(measured, allow_nan=False)


def test_in_recordings_every_span_is_scored_after_those_before_it():
    held_out = observations(1, apart=1.5)
    domain = fitted(apart=1.5)
    music = [one for one in held_out if not one.has_text]
    drawn, dropped, warned = in_recordings(music, domain)
    doubts = log_odds(music, domain) - math.log(domain.threshold / (1 - domain.threshold))
    assert len(drawn) == len(dropped) == 4000
    for recording in range(0, 4000, 8):
        own = doubts[drawn[recording : recording + 8]]
        before = [own[max(0, n - 4) : n] for n in range(8)]
        added = [np.clip(last.mean(), 0, 3) * len(last) / 4 if len(last) else 0.0 for last in before]
        np.testing.assert_array_equal(dropped[recording : recording + 8], own + added > 0)
        likely_wrong = own + added + logit(domain.threshold) > 0
        expected = np.ones(8) if likely_wrong.sum() > 4 else likely_wrong
        np.testing.assert_array_equal(warned[recording : recording + 8], expected)
    rows = {row["sound"]: row for row in measure(held_out, domain)["rows"]}
    assert rows["music"]["wrong_text_in_recordings_%"] == pytest.approx(100 * (~dropped).mean(), abs=0.06)
    assert rows["music"]["wrong_text_in_recordings_%"] < rows["music"]["wrong_text_now_%"]
    assert rows["music"]["wrong_without_warning_in_recordings_%"] == pytest.approx(
        100 * (~dropped & ~warned).mean(), abs=0.06
    )


def test_only_signals_that_the_model_always_gives_get_a_weight():
    seen = [
        replace(one, signals={**one.signals, **({"ctc_disagreement": 1.0} if n else {})})
        for n, one in enumerate(observations(0))
    ]
    assert fit(seen, CalibrationOptions()).signal_names == {"mean_log_probability"}


def test_the_threshold_holds_for_speakers_who_were_not_fitted_on():
    """Every speaker has a direction of his own: fitted on, it would seem to tell his right texts from wrong ones."""
    seen = observations(0, 1000, apart=1.5)
    rng = np.random.default_rng(3)
    own = {one.sources: 3.0 * rng.normal(size=40) for one in seen}
    wide = [
        replace(
            one, state=np.concatenate([one.state, own[one.sources] + rng.normal(size=40)]).astype(np.float32)
        )
        for one in seen
    ]
    domain = fit(wide, CalibrationOptions(max_dropped=0.05))
    right = np.array([one.understood for one in wide])
    assert (probabilities(wide, domain)[right] > domain.threshold).mean() < 0.05


def test_one_kind_of_speech_alone_cannot_be_calibrated_on():
    right = [one for one in observations(0) if one.has_text]
    with pytest.raises(SprachbundError, match="0 texts that are wrong"):
        fit(right, CalibrationOptions())


def test_sounds_are_limited_by_kind_and_cut_where_nobody_speaks(tmp_path):
    second = np.ones(16_000, np.float32) * 0.3
    gap = np.zeros(16_000, np.float32)
    with ManifestWriter(tmp_path / "corpus") as writer:
        for number in range(6):
            kind = "music" if number % 2 else "spoken"
            writer.add(
                np.concatenate([second, gap, second]),
                text="" if number % 2 else "eins",
                language="" if number % 2 else "de",
                speaker="",
                utterance_id=f"u{number}",
                custom={"kind": kind, "corpus": "corpus"},
            )
    options = CalibrationOptions(limit=2)
    sounds = list(read_sounds(tmp_path / "corpus", options, Loudness(), vary=False))
    speech = [sound.samples for sound in sounds if sound.utterance.text]
    music = [sound.samples for sound in sounds if not sound.utterance.text]
    assert [len(samples) for samples in speech] == [48_000] * 2
    assert len(music) == 4  # two sounds, each with two spans
    assert max(map(len, music)) < 32_000
    assert len({sound.group for sound in sounds}) == 2


def test_for_fitting_every_sound_is_heard_once_more_in_another_voice_and_channel(tmp_path):
    with ManifestWriter(tmp_path / "corpus") as writer:
        for number in range(8):
            tone = 0.3 * np.sin(np.arange(16_000) * (0.05 + 0.01 * number)).astype(np.float32)
            writer.add(
                tone,
                text="eins",
                language="de",
                speaker="",
                utterance_id=f"u{number}",
                custom={"kind": "spoken", "corpus": "corpus"},
            )
    sounds = list(read_sounds(tmp_path / "corpus", CalibrationOptions(), Loudness(), vary=True))
    assert [sound.plain for sound in sounds] == [True, False] * 8
    for plain, varied in zip(sounds[::2], sounds[1::2], strict=True):
        assert varied.utterance == plain.utterance
        assert not np.array_equal(varied.samples, plain.samples)
    assert len(sounds[0].samples) == 16_000
    assert any(len(sound.samples) > 20_000 for sound in sounds[::2]), "some have another sentence in front"


def test_two_speakers_at_once_are_sound_that_has_no_text(tmp_path):
    tones = {who: 0.3 * np.sin(np.arange(8_000 * (1 + n)) * 0.1 * (n + 1)) for n, who in enumerate("ab")}
    with ManifestWriter(tmp_path / "corpus") as writer:
        for number in range(60):
            who = "ab"[number % 2]
            writer.add(
                tones[who].astype(np.float32),
                text="eins",
                language="de",
                speaker=who,
                utterance_id=f"u{number}",
                custom={"kind": "spoken", "corpus": "corpus"},
            )
    sounds = list(read_sounds(tmp_path / "corpus", CalibrationOptions(), Loudness(), vary=False))
    mixed = [sound for sound in sounds if not sound.utterance.text]
    assert len(sounds) - len(mixed) == 60
    assert 18 <= len(mixed) <= 42
    assert {sound.group for sound in mixed} == {"corpus: two at once"}
    for sound in mixed:
        assert sound.utterance.speaker == "", "it is nobody's"
        power = np.abs(np.fft.rfft(sound.samples)) ** 2
        hz = np.fft.rfftfreq(len(sound.samples), 1 / 16_000)
        low, high = (power[np.abs(hz - 16_000 * step / (2 * np.pi)) < 20].sum() for step in (0.1, 0.2))
        assert 0.4 < high / low < 2.5, "about equally loud"
        assert np.abs(sound.samples).max() == pytest.approx(0.5, abs=1e-3)


SPEAKERS = [f"voice {number}" for number in range(12)]


def hz(speaker: str) -> float:
    """The tone of a speaker."""
    return 400.0 + 150.0 * SPEAKERS.index(speaker)


def heard(samples: np.ndarray) -> set[str]:
    """The speakers whose tones a sound has."""
    power = np.abs(np.fft.rfft(samples)) ** 2
    at = np.fft.rfftfreq(len(samples), 1 / 16_000)
    return {who for who in SPEAKERS if power[np.abs(at - hz(who)) < 10].sum() > 0.05 * power.sum()}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Two corpora with the same speakers, and one of songs with several spans, whose singers nobody names."""
    root = tmp_path_factory.mktemp("corpora")
    times_s, rng = np.arange(8_000) / 16_000, np.random.default_rng(0)
    for name in "ab":
        with ManifestWriter(root / name) as writer:
            for number in range(96):
                who = SPEAKERS[rng.integers(12)]
                tone = 0.3 * np.sin(2 * np.pi * hz(who) * times_s).astype(np.float32)
                custom = {"kind": "spoken", "corpus": name}
                writer.add(
                    tone, text="eins", language="de", speaker=who, utterance_id=f"u{number}", custom=custom
                )
    tone, pause = np.full(16_000, 0.3, np.float32), np.zeros(16_000, np.float32)
    with ManifestWriter(root / "songs") as writer:
        for number in range(10):
            song, custom = np.concatenate([tone, pause, tone]), {"kind": "song", "corpus": "songs"}
            writer.add(song, text="", language="", speaker="", utterance_id=f"s{number}", custom=custom)
    return [root / name for name in ("a", "b", "songs")]


def sounds_of(directories):
    """All sounds for fitting, as `collect` reads them."""
    options = CalibrationOptions()
    circles = speaker_circles(directories, options.seed)
    return [
        sound
        for directory in directories
        for sound in read_sounds(directory, options, Loudness(), vary=True, circles=circles)
    ]


def test_a_sound_names_everybody_who_is_heard(spoken):
    sounds = [sound for sound in sounds_of(spoken) if sound.plain and sound.group != "songs: song"]
    for sound in sounds:
        assert {source.removeprefix("speaker ") for source in sound.sources} == heard(sound.samples)
    together = [sound for sound in sounds if len(sound.sources) == 2]
    assert {bool(sound.utterance.text) for sound in together} == {True, False}, "joined, and at once"


def test_no_speaker_and_no_song_is_in_a_fold_and_in_what_it_is_held_out_from(spoken):
    sounds = sounds_of(spoken)
    seen = [
        replace(one, chrf=90.0 * bool(sound.utterance.text), sources=sound.sources)
        for one, sound in zip(observations(0, len(sounds)), sounds, strict=True)
    ]
    parts = list(folds(seen, seed=1))
    assert len(parts) == 5
    assert sorted(n for _, own in parts for n in own) == list(range(len(seen)))
    for others, own in parts:
        of_others, of_own = ({source for n in part for source in seen[n].sources} for part in (others, own))
        assert not of_others & of_own
        assert any(source.startswith("speaker") for source in of_own)
    songs = [sound for sound in sounds if sound.group == "songs: song"]
    assert len({sound.sources for sound in songs}) == 10, "spans of a song are of one source"
    assert len(songs) >= 30


def test_right_texts_of_one_speaker_cannot_be_held_out():
    seen = [replace(one, sources=("speaker a",)) if one.has_text else one for one in observations(0)]
    with pytest.raises(SprachbundError, match="texts that are right are of one speaker"):
        fit(seen, CalibrationOptions())


def test_the_command_measures_the_calibration_that_a_model_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(bundled_directory(), model)
    before = (model / DOMAIN_FILE).read_bytes()
    recordings = Path(__file__).parents[2] / "examples" / "recordings"
    family = sprachbund.load()
    with ManifestWriter(tmp_path / "corpus") as writer:
        for tag in ("en", "es", "it", "fr"):
            samples = load_audio(next(recordings.glob(f"{tag}.*")))
            right = {
                to: family.translate(samples, to=to, sample_rate=SAMPLE_RATE).text
                for to in ("de", "en", "es", "fr", "it", "ru")
            }
            text = right.pop(tag) if tag != "fr" else ""
            writer.add(
                samples,
                text=text,
                translations=right if text else {},
                language=tag,
                speaker=tag,
                utterance_id=tag,
                custom={} if text else {"kind": "talk"},
            )
    command = ["calibrate", "--model", str(model), "--test", str(tmp_path / "corpus"), "--json"]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["threshold"] == json.loads(before)["threshold"]
    rows = {row["sound"]: row for row in result["rows"]}
    assert rows["corpus"]["wrong_text_before_%"] == 0.0
    assert rows["corpus: talk"]["wrong_text_before_%"] == 100.0
    assert (model / DOMAIN_FILE).read_bytes() == before
    (model / DOMAIN_FILE).unlink()
    assert main(command) == 2
    assert "was not calibrated; name corpora" in capsys.readouterr().err
    assert main(command[:3]) == 2
    assert "DATA is missing" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "corpus")]) == 2
    assert "is trained on and measured on; measure on another corpus" in capsys.readouterr().err
    twice = ["calibrate", str(tmp_path / "corpus"), str(tmp_path / "corpus"), "--model", str(model)]
    for line in (twice, [*twice, "--turns"], [*command, "--test", str(tmp_path / "corpus")]):
        assert main(line) == 2
        assert "is named twice; name each corpus directory once" in capsys.readouterr().err
    out = tmp_path / "out"
    out.touch()
    assert main(["calibrate", "--model", "bundled", *command[3:], "--out", str(out)]) == 2
    assert f"--out {out} is a file; name a folder" in capsys.readouterr().err
    out.unlink()
    assert main(["calibrate", "--model", "bundled", *command[3:], "--out", str(out)]) == 0
    measured = json.loads((out / "domain.json").read_text())
    assert measured["model"] == content_hash(bundled_directory())
    capsys.readouterr()
    for kind in ([], ["--turns"]):
        assert main(["calibrate", str(tmp_path / "corpus"), "--model", "bundled", *kind]) == 2
        assert "bundled is the name of one; copy " in capsys.readouterr().err
    assert not Path("bundled").exists()


def test_speech_without_a_text_that_the_model_could_write_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_transducer()
    monkeypatch.setattr(model, "pairs", lambda: {("de", "en")})  # it translates, and writes no transcripts
    texts = {"both": {"en": "one"}, "german": {}, "french": {}, "noise": {}}
    for name in ("some", "none"):
        with ManifestWriter(tmp_path / name) as writer:
            for kind, translations in texts.items():
                if name == "some" or kind == "german":
                    writer.add(
                        np.random.default_rng(len(kind)).normal(0, 0.1, 16_000).astype(np.float32),
                        text="" if kind == "noise" else "eins",
                        language={"noise": "", "french": "fr"}.get(kind, "de"),
                        speaker="",
                        utterance_id=kind,
                        translations=translations,
                        custom={"kind": kind},
                    )
    seen = collect(model, [tmp_path / "some"], CalibrationOptions(), vary=False)
    assert sorted(one.has_text for one in seen) == [False, True, True], "no text for French is right"
    with pytest.raises(SprachbundError, match="none has no text in a language that the model writes"):
        collect(model, [tmp_path / "none"], CalibrationOptions(), vary=False)


def test_what_is_fitted_on_is_heard_by_all_tiers_and_what_is_measured_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, heard = tiny_transducer(), list[int]()
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda x: heard.append(model.encoder.tier.right) or encode(x))
    with ManifestWriter(tmp_path / "corpus") as writer:
        for number in range(6):
            sound = np.random.default_rng(number).normal(0, 0.1, 16_000).astype(np.float32)
            writer.add(sound, text="eins", language="de", speaker="", utterance_id=f"u{number}")
    use_tier(model, 1)
    collect(model, [tmp_path / "corpus"], CalibrationOptions(batch_size=4), vary=True)
    assert heard == [6, 1, 0]
    assert model.encoder.tier.right == 1
    heard.clear()
    collect(model, [tmp_path / "corpus"], CalibrationOptions(batch_size=4), vary=False)
    assert heard == [1, 1]
