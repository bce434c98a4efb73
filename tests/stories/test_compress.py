"""`compress` from speech alone to a small model in 8 bits, and every way in which it can be asked for too much."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import typer

from sprachbund.cli import build_app
from sprachbund.compression import before_after
from sprachbund.compression.options import DistillationOptions, FilterOptions
from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.models import whisper
from sprachbund.models.card import Card
from sprachbund.models.conformer import Conformer
from sprachbund.models.conformer.io import save
from sprachbund.models.io import load
from tests.models.seamless.support import make_checkpoint
from tests.models.whisper_support import TINY, make_directory
from tests.stories.support import Ran, command, speech, write_tiny_model, write_wav
from tests.training import made

ANYTHING = (
    *("--min-log-probability", "-100", "--max-repetition", "1", "--max-compression", "100"),
    *("--max-length-ratio", "100", "--max-other-language", "1", "--max-characters-per-s", "1000"),
)
"""Thresholds that even a model with random weights keeps."""
QUICK = ("--limit", "2", "--rounds", "1", "--no-speech", "0")


def set_to(*values: str) -> list[str]:
    return [part for value in values for part in ("--set", value)]


TRAINING = set_to(
    "training.batch_s=12", "training.num_workers=0", "training.precision=no", "training.log_every=2"
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conformer of three decoder layers that is sure of what it writes, and ends every row after four tokens."""
    path = tmp_path_factory.mktemp("models") / "teacher"
    base = made.make_model()
    config = base.config.model_copy(update={"num_decoder_layers": 3})
    torch.manual_seed(5)
    model = Conformer(config, base.tokenizer, base.transcript_tokenizer)
    with torch.no_grad():
        decoder, end = model.decoder, torch.randn(model.config.width)
        end -= end.mean()
        decoder.positions.mul_(20.0)
        decoder.norm.weight.mul_(8.0)
        decoder.embedding.weight[model.end_token] = 0.2 * end
        decoder.positions[4:] = 100 * end
    save(model, path, card=Card(name="teacher", licence="CC0-1.0", scores=[{"metric": "chrF", "value": 1}]))
    return path


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Speech without any text."""
    folder = tmp_path_factory.mktemp("recordings")
    for i, text in enumerate(("one two three", "four three two", "two two one")):
        write_wav(folder / f"{i}.wav", speech(text))
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with references."""
    path = tmp_path_factory.mktemp("corpus")
    with ManifestWriter(path) as writer:
        for i, (text, translation) in enumerate((("one two", "eins zwei"), ("four three", "vier drei"))):
            writer.add(
                speech(text),
                text=text,
                language="en",
                speaker="voice",
                utterance_id=str(i),
                translations={"de": translation},
            )
    return path


def ran(*args: str | Path) -> Ran:
    done = command("compress", *args)
    assert done.code == 0, done.err
    return done


@pytest.mark.slow
def test_from_speech_to_a_small_model_of_8_bits(
    teacher: Path, recordings: Path, corpus: Path, tmp_path: Path
) -> None:
    labels, pruned, run, small = (tmp_path / name for name in ("labels", "pruned", "run", "small"))
    done = ran("pseudo-label", teacher, recordings, "--from", "en", "--to", "de", "--out", labels, *ANYTHING)
    assert done.out.splitlines()[:3] == ["language  kept", "de           3", "en           3"]
    assert "3 utterances in the corpus; left out: none" in done.out
    assert all(u.text and u.translations["de"] for u in Manifest(labels))
    again = ran(
        *("pseudo-label", teacher, recordings, "--from", "en", "--to", "de", "--out", labels, "--json"),
        *ANYTHING,
    )
    assert json.loads(again.out)["counts"] == {"de": {"kept": 3}, "en": {"kept": 3}}

    done = ran("prune", teacher, "--decoder", "2", "--out", pruned, "--data", corpus, *QUICK)
    assert "time of the same work:" in done.out
    assert "en-de  chrF" in done.out
    assert "en-en  WER" in done.out

    asked = ("distil", teacher, labels, "--texts", "data", "--student", pruned, "--to", "de", "--out", run)
    how = ("--steps", "4", *TRAINING, *QUICK, "--data", corpus)
    stopped = ran(*asked, *how, "--stop-after", "2")
    assert not (run / "model" / "compression.json").exists()
    assert "stopped at step 2" in stopped.err
    done = ran(*asked, *how)
    assert "resumed at step 2" in done.out
    assert "kl " in done.out

    done = ran("quantize", run / "model", "--out", small, "--data", corpus, *QUICK, "--json")
    values = json.loads(done.out)
    assert values == json.loads((small / "compression.json").read_text())
    assert (values["verb"], values["before"]["bits"], values["after"]["bits"]) == ("quantize", 32, 8)
    assert values["before"]["scores"] == values["after"]["scores"]
    assert values["tasks"]["lost"] == values["tasks"]["worse"] == []
    assert len(load(small).decoder.layers) == 2  # type: ignore[attr-defined]
    card = Card.read(small)
    assert card is not None
    assert (card.licence, card.scores, card.training["made_from"]["by"]) == ("CC0-1.0", [], "quantize")
    assert command("translate", recordings / "0.wav", "--to", "de", "--model", small).code == 0


def test_distilling_from_recordings_alone_labels_them_first(
    teacher: Path, recordings: Path, tmp_path: Path
) -> None:
    ran("prune", teacher, "--decoder-layers", "0,2", "--out", tmp_path / "pruned", "--rounds", "0")
    done = ran(
        *("distil", teacher, recordings, "--student", tmp_path / "pruned", "--to", "de", "--from", "en"),
        *("--out", tmp_path / "run", "--steps", "2", *TRAINING, *QUICK, "--json"),
    )
    values = json.loads(done.out)  # all else goes to stderr
    assert values["before"]["scores"]["en-de"]["chrF"] == 100
    assert "measured on the teacher's own texts" in done.err
    assert "language" in done.err
    assert values["data"][0]["path"] == str(tmp_path / "run" / "labels")


@pytest.mark.slow
def test_a_whisper_is_pruned_and_quantized_with_what_it_can_do(corpus: Path, tmp_path: Path) -> None:
    make_directory(
        tmp_path / "whisper", TINY.__class__(**{**vars(TINY), "decoder_layers": 3, "max_frames": 150})
    )
    data = ("--data", corpus, "--to", "en", *QUICK)
    done = ran("prune", tmp_path / "whisper", "--decoder", "2", "--out", tmp_path / "pruned", *data)
    assert "timestamps at the end:" in done.out
    assert "lost:" not in done.out
    done = ran("quantize", tmp_path / "pruned", "--out", tmp_path / "small", *data)
    assert "bits of a matrix" in done.out
    pruned, small = (whisper.load(tmp_path / name) for name in ("pruned", "small"))
    assert small.pairs() == pruned.pairs()
    assert small.config == pruned.config


def refused(*args: str | Path) -> str:
    done = command("compress", *args)
    assert done.code in (1, 2)
    assert len(done.error_lines) == 1, done.err
    return done.error_lines[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--decoder", "0"], "0 layers cannot be kept of 3: the first and the last always stay; give 2 to 3"),
        (["--decoder", "4"], "4 layers cannot be kept of 3"),
        (["--encoder", "9"], "9 layers cannot be kept of 2"),
        (["--decoder-layers", "0,5"], "layers of the decoder to keep: 0, 5; name some of 0 to 2"),
        (["--decoder-layers", "first"], "--decoder-layers takes numbers from 0 to 2, not 'first'"),
        (["--decoder", "2", "--decoder-layers", "0"], "give --decoder or --decoder-layers, not both"),
        ([], "say what stays: --decoder K"),
    ],
)
def test_pruning_what_cannot_be_is_one_line(
    teacher: Path, options: Sequence[str], message: str, tmp_path: Path
) -> None:
    assert message in refused("prune", teacher, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_left_alone(teacher: Path, recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    taken = "is there already"
    assert taken in refused("prune", teacher, "--decoder", "2", "--out", tmp_path)
    assert taken in refused("quantize", teacher, "--out", tmp_path)
    assert taken in refused(
        "distil", teacher, recordings, "--student", teacher, "--to", "de", "--out", tmp_path
    )
    assert taken in refused("pseudo-label", teacher, recordings, "--to", "de", "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("how", [["quantize"], ["prune", "--decoder", "2"]])
def test_a_model_is_there_with_its_numbers_or_not_at_all(
    teacher: Path, tmp_path: Path, how: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended before `compression.json`, a command once left a model, for which it was refused when it was run again."""
    out, asked = tmp_path / "out", (*how, teacher, "--out", tmp_path / "out", "--rounds", "0")

    def end(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(before_after, "measure_both", end)
        assert command("compress", *asked).code == 130
    assert list(tmp_path.iterdir()) == []
    ran(*asked)
    values = json.loads((out / "compression.json").read_text())
    assert values["after"]["model"]["path"] == str(out)
    card = Card.read(out)
    assert card is not None
    assert card.name == values["after"]["model"]["name"] == "out"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_languages_and_data_that_are_not_there_are_named(
    teacher: Path, recordings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert "language 'fr' is not among those of this model" in refused(
        "pseudo-label", teacher, recordings, "--to", "fr", "--out", out
    )
    assert "does not write fr; it writes de, en" in refused(
        "distil", teacher, recordings, "--student", teacher, "--to", "fr", "--out", out
    )
    for option in ("--data", "--dev"):  # which are read when labels are made and the student is trained
        asked = ("--student", teacher, "--to", "de", option, tmp_path / "nowhere", "--out", out)
        assert "nowhere" in refused("distil", teacher, recordings, *asked)
        assert not out.exists()
    (tmp_path / "empty").mkdir()
    assert "holds no audio" in refused(
        "pseudo-label", teacher, tmp_path / "empty", "--to", "de", "--out", out
    )
    assert "is not there" in refused("pseudo-label", teacher, tmp_path / "no", "--to", "de", "--out", out)
    assert not out.exists()


def test_students_that_do_not_go_with_the_teacher_are_refused(
    teacher: Path, recordings: Path, tmp_path: Path
) -> None:
    asked = ("--to", "de", "--out", tmp_path / "out")
    ran("prune", teacher, "--decoder", "2", "--out", tmp_path / "pruned", "--rounds", "0")
    assert "give the larger model as the teacher" in refused(
        "distil", tmp_path / "pruned", recordings, "--student", teacher, *asked
    )
    other = write_tiny_model(tmp_path / "other")
    assert "another vocabulary" in refused("distil", teacher, recordings, "--student", other, *asked)
    assert "unknown key training.step; did you mean training.steps?" in refused(
        "distil", teacher, recordings, "--student", tmp_path / "pruned", *asked, *set_to("training.step=3")
    )


def test_a_family_without_a_place_for_8_bits_is_named(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "seamless", "seamless_m4t_v2")
    assert "seamless models are written in 16 or 32 bits" in refused(
        "quantize", tmp_path / "seamless", "--out", tmp_path / "out"
    )


def test_the_page_names_every_reason_and_threshold_with_its_default() -> None:
    text = (Path(__file__).parents[2] / "docs" / "compress.md").read_text(encoding="utf-8")
    options, guard = FilterOptions(), FilterOptions().guard
    for option, value in {
        "--min-speech": guard.min_speech_probability,
        "--max-no-speech": guard.max_no_speech_probability,
        "--min-log-probability": guard.hopeless_mean_log_probability,
        "--max-compression": guard.max_compression_ratio,
        "--max-repetition": guard.max_repetition,
        "--max-characters-per-s": guard.max_characters_per_s,
        "--max-length-ratio": options.max_length_ratio,
        "--max-other-language": options.max_other_language,
        "--min-language": options.min_language_probability,
    }.items():
        assert f"`{option}` {value:g}" in text, option
        assert defaults("pseudo-label")[option] == value
    assert defaults("distil")["--temperature"] == DistillationOptions().temperature


def defaults(verb: str) -> dict[str, object]:
    """Options of a command and what they are if not given."""
    compress = typer.main.get_command(build_app()).get_command(None, "compress")  # type: ignore[attr-defined]
    return {parameter.opts[0]: parameter.default for parameter in compress.commands[verb].params}
