import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import sprachbund
from sprachbund.decoding.options import GuardOptions
from tests.decoding.test_speculative_drafts import parasite_for
from tests.decoding.tiny_family import TinyFamily
from tests.stories.support import LANGUAGES, speech, write_tiny_model, write_wav

OPEN = sprachbund.DecodingOptions(guard=GuardOptions(enabled=False))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(directory: Path) -> sprachbund.Model:
    return sprachbund.load(directory)


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wav(tmp_path_factory.mktemp("audio") / "talk.wav", speech())


def test_one_language_gives_a_translation(model: sprachbund.Model, talk: Path) -> None:
    result = model.translate(talk, to="German", options=OPEN)
    assert isinstance(result, sprachbund.Translation)
    assert result.target_language == "de"
    assert result.text == " ".join(segment.text for segment in result.segments) != ""
    assert all(isinstance(segment, sprachbund.Segment) for segment in result.segments)


def test_several_languages_give_a_dictionary_equal_to_one_at_a_time(
    model: sprachbund.Model, talk: Path
) -> None:
    together = model.translate(talk, to=["fr", "German"], options=OPEN)
    assert list(together) == ["fr", "de"]
    alone = model.translate(talk, to="de", options=OPEN)
    assert together["de"].text == alone.text
    assert together["de"].segments[0].mean_log_probability == pytest.approx(
        alone.segments[0].mean_log_probability, abs=1e-4
    )


def test_path_file_and_samples_are_the_same(model: sprachbund.Model, talk: Path) -> None:
    expected = model.translate(str(talk), to="en", options=OPEN)
    with talk.open("rb") as file:
        assert model.translate(file, to="en", options=OPEN) == expected
    samples, sample_rate = soundfile.read(talk, dtype="float32")
    assert model.translate(samples, to="en", options=OPEN, sample_rate=sample_rate) == expected
    stereo = np.stack([samples, samples], axis=1)
    assert model.translate(stereo, to="en", options=OPEN, sample_rate=sample_rate) == expected


def test_transcription_is_translation_into_the_language_spoken(model: sprachbund.Model, talk: Path) -> None:
    heard = model.transcribe(talk, source="fr", options=OPEN)
    assert heard.segments == model.translate(talk, to="fr", source="fr", options=OPEN).segments


def test_stream_gives_the_segments_one_by_one(model: sprachbund.Model, talk: Path) -> None:
    work = model.stream(talk, ["de", "en"], options=OPEN)
    segments = list(work)
    assert [s.target_language for s in segments] == ["de", "en"]
    whole = model.translate(talk, to="de", options=OPEN).segments[0]
    assert (segments[0].start_s, segments[0].text) == (whole.start_s, whole.text)
    assert work.finished_s == work.duration_s == pytest.approx(soundfile.info(talk).duration)


def test_warnings_of_the_audio_stand_apart_from_notes(directory: Path, talk: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.wav"
    cut.write_bytes(talk.read_bytes()[:60_000])
    for path in directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    parasite_for(TinyFamily()).save(tmp_path / "draft.safetensors")  # of another model
    work = sprachbund.load(tmp_path).stream(cut, "de")
    list(work)
    assert len(work.audio_warnings) == 1
    assert "cut off" in work.audio_warnings[0]
    [note] = set(work.warnings) - set(work.audio_warnings)
    assert "draft" in note


def test_a_prompt_that_the_model_does_not_read_is_refused(model: sprachbund.Model, talk: Path) -> None:
    said = "the model conformer has no room for a prompt; leave it out, or take a whisper or qwen3_asr model"
    with pytest.raises(sprachbund.SprachbundError, match=said):
        model.translate(talk, to="de", options=sprachbund.DecodingOptions(prompt="a glossary"))


@pytest.mark.parametrize("options", [{"beam_size": 4}, 4])
def test_options_of_another_kind_are_named(model: sprachbund.Model, talk: Path, options: Any) -> None:
    for ask in (
        lambda: model.translate(talk, to="de", options=options),
        lambda: model.transcribe(talk, options=options, languages=["de"]),
        lambda: model.stream(talk, to="de", options=options),
        lambda: model.listen("de", options=options),
    ):
        said = rf"options is {re.escape(repr(options))}; give sprachbund\.DecodingOptions, such as "
        with pytest.raises(sprachbund.SprachbundError, match=said):
            ask()


def test_live_options_and_samples_of_another_kind_are_named(model: sprachbund.Model) -> None:
    with pytest.raises(sprachbund.SprachbundError, match=r"live is {'step_s': 1}; give LiveOptions"):
        model.listen("de", live={"step_s": 1})  # type: ignore[arg-type]
    with pytest.raises(sprachbund.SprachbundError, match="samples are of type Tensor; give an array"):
        model.listen("de").hear(torch.zeros(1600))  # type: ignore[arg-type]


def test_numbers_of_sixteen_bits_as_floats_are_no_sound(model: sprachbund.Model) -> None:
    listener = model.listen("de")
    with pytest.raises(sprachbund.SprachbundError, match="divide 16-bit numbers by 32768"):
        listener.hear(np.full(1600, 12_000, np.float32))


def test_pairs_and_card(model: sprachbund.Model, directory: Path) -> None:
    assert model.pairs == tuple((s, t) for s in LANGUAGES for t in LANGUAGES)
    assert (model.card.name, model.card.bits) == ("tiny", 8)
    assert repr(model) == f"<sprachbund.Model {directory}: conformer, 9 pairs>"


def test_model_without_a_card_gets_its_languages(directory: Path, tmp_path: Path) -> None:
    for path in directory.iterdir():
        if path.name != "card.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    card = sprachbund.load(tmp_path).card
    assert (card.name, card.target_languages, card.licence) == (str(tmp_path), [*LANGUAGES], "")


def test_errors_name_what_is_wrong(model: sprachbund.Model, talk: Path) -> None:
    with pytest.raises(sprachbund.SprachbundError, match=r"'sorbian' .* it knows de"):
        model.translate(talk, to="sorbian")
    with pytest.raises(sprachbund.SprachbundError, match="does not exist"):
        model.stream("nowhere.wav", "de")
    with pytest.raises(sprachbund.SprachbundError, match="no/such/place"):
        sprachbund.load("/no/such/place")
    with pytest.raises(AttributeError, match="'lode'"):
        sprachbund.lode  # noqa: B018


@pytest.mark.parametrize("to", [None, 5])
def test_a_target_that_is_no_language_is_named(model: sprachbund.Model, talk: Path, to: Any) -> None:
    said = rf"to is {to}; give a language such as 'de', or several such as \['de', 'fr'\]"
    for ask in (
        lambda: model.translate(talk, to=to),
        lambda: model.stream(talk, to=to),
        lambda: model.listen(to),
    ):
        with pytest.raises(sprachbund.SprachbundError, match=said):
            ask()
    with pytest.raises(sprachbund.SprachbundError, match="a language is None; give its tag or name as text"):
        model.translate(talk, to=["de", None])


def test_real_length_is_an_option_of_whisper(tmp_path: Path) -> None:
    from tests.models.whisper_support import make_directory

    make_directory(tmp_path)
    assert not sprachbund.load(tmp_path).family.real_length  # type: ignore[attr-defined]
    assert sprachbund.load(tmp_path, real_length=True).family.real_length  # type: ignore[attr-defined]


def test_options_of_loading_that_a_model_cannot_serve_are_errors(tmp_path: Path) -> None:
    with pytest.raises(
        sprachbund.SprachbundError, match=r"real_length is True, .* whisper models do, and conformer always"
    ):
        sprachbund.load(real_length=True)
    from sprachbund.models.io import save
    from tests.streaming.test_by_frames import tiny_transducer

    save(tiny_transducer(), tmp_path)
    with pytest.raises(sprachbund.SprachbundError, match="pool_frames is 2, and the text of conformer"):
        sprachbund.load(tmp_path, pool_frames=2)


def test_listening_gives_what_translating_gives(tmp_path):
    from sprachbund.audio.load import load as load_audio
    from sprachbund.streaming.options import LiveOptions

    samples = load_audio(Path(__file__).parents[1] / "examples" / "recordings" / "es.flac", 0.0, 12.0)
    model = sprachbund.load()
    listener = model.listen("de", live=LiveOptions(policy="span"))
    events = [
        event
        for start in range(0, len(samples), 5000)
        for event in listener.hear(samples[start : start + 5000])
    ]
    events += listener.finish()
    result = "".join(event.committed for event in events)
    assert result == model.translate(samples, "de", sample_rate=16_000).text != ""


def test_listening_hears_integers_as_translating_does():
    """Microphones give 16-bit integers: unscaled, they were 32,768 times too loud."""
    from sprachbund.audio.load import load as load_audio

    samples = load_audio(Path(__file__).parents[1] / "examples" / "recordings" / "es.flac", 0.0, 3.0)
    model = sprachbund.load()
    listener, other = model.listen("de"), model.listen("de")
    heard = listener.hear((samples * 32768).clip(-32768, 32767).astype(np.int16))
    exact = other.hear((samples * 32768).clip(-32768, 32767).astype(np.int16) / np.float32(32768))
    assert heard == exact
    assert listener.finish() == other.finish()


@pytest.mark.parametrize("samples", [bytes(3200), bytearray(3200), [0.0] * 1600])
def test_blocks_that_are_no_arrays_are_refused(model: sprachbund.Model, samples: Any) -> None:
    with pytest.raises(
        sprachbund.SprachbundError, match=r"give an array, of raw 16-bit sound numpy\.frombuffer"
    ):
        model.listen("de").hear(samples)
    with pytest.raises(sprachbund.SprachbundError, match="is of type complex64; give integers or floats"):
        model.listen("de").hear(np.zeros(1600, np.complex64))
