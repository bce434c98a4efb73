"""Speech that mixes languages as a target of its own, `mul`: from the corpus to the text, in miniature."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.cli import main
from sprachbund.corpora.mixed import MixedSpeechOptions, make_mixed
from sprachbund.data.loading import Corpus, ExampleOptions, PieceExamples
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.lines import embedded_spans, read_lines
from sprachbund.evaluation.manifest import MANIFEST_FILE
from sprachbund.models.card import Card
from sprachbund.models.conformer.extension import add_languages
from sprachbund.models.conformer.io import load as load_conformer
from sprachbund.models.conformer.io import save as save_conformer
from sprachbund.text.languages import MIXED
from sprachbund.training.translator import run
from tests.training import made
from tests.training.owned import fine_tuning_recipe, make_whisper

LANGUAGES = ("en", "de", MIXED)
CHANGES = {"languages": LANGUAGES, "fine_tuning": {"new_languages": {MIXED: "mean"}}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mixed")
    options = MixedSpeechOptions(
        pairs=(("de", "en"), ("en", "de")),
        languages=("en", "de"),
        train_utterances=12,
        heldout_utterances=1,
    )
    make_mixed(directory / "data", options, workers=1)
    save_conformer(made.make_model(), directory / "start")
    return directory


@pytest.fixture(scope="module")
def trained(root: Path) -> Path:
    data = root / "data"
    recipe = fine_tuning_recipe(
        data / "train",
        root / "start",
        3,
        train=[{"path": data / "train"}, {"path": data / "monolingual-train"}],
        dev=[{"path": data / "dev"}, {"path": data / "monolingual-dev"}],
        training={"max_duration_s": 10, "batch_s": 20},
        bits=32,
        **CHANGES,
    )
    run(recipe, root / "run", report=lambda line: None)
    return root / "run" / "model"


def test_the_corpus_has_what_is_said_in_this_target(root: Path) -> None:
    for utterance in Manifest(root / "data" / "train"):
        assert utterance.text_in(MIXED) == utterance.text
        places = [span.word_range for span in embedded_spans(utterance, MIXED)]
        assert places == [span.word_range for span in embedded_spans(utterance, utterance.language)]
        assert any(places)
    assert all(
        utterance.text_in(MIXED) is None for utterance in Manifest(root / "data" / "monolingual-train")
    )


@pytest.mark.parametrize(("share", "asked"), [(None, {MIXED, "other"}), (1.0, {MIXED}), (0.0, {"other"})])
def test_mixed_speech_is_transcribed_in_it_and_not_in_its_main_language(
    root: Path, share: float | None, asked: set[str]
) -> None:
    model = made.make_model()
    tokenizer = add_languages(model, {MIXED: "mean"}).tokenizer
    examples = PieceExamples(tokenizer, model.transcript_tokenizer, LANGUAGES, max_tokens=500)
    assert examples.source_languages == ["en", "de"]
    of_token = {tokenizer.language_id(tag): tag for tag in LANGUAGES}
    rng = np.random.default_rng(0)
    for part in ("train", "monolingual-train"):
        manifest = Manifest(root / "data" / part)
        corpus = Corpus(
            [(manifest, 1.0)], examples, ExampleOptions(rows_per_utterance=1, same_language=share)
        )
        for utterance in manifest:
            drawn = {of_token[corpus.rows(utterance, rng)[0][0]] for _ in range(20)}
            [other] = {"en", "de"} - {utterance.language}
            own = MIXED if part == "train" else utterance.language
            names = {own: MIXED, other: "other"}
            assert {names[tag] for tag in drawn} == asked


@pytest.mark.slow
def test_a_model_with_the_token_writes_mixed_speech_and_transcribes_other(
    trained: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_conformer(trained)
    assert model.source_languages == ("en", "de")
    assert model.pairs() == {(s, t) for s in ("en", "de") for t in LANGUAGES}
    assert len(model.language_head.bias) == 2
    before = load_conformer(root / "start")
    assert not model.encoder.state_dict()["layers.0.norm.weight"].equal(
        before.encoder.state_dict()["layers.0.norm.weight"]
    )
    card = Card.read(trained)
    assert card is not None
    assert (card.source_languages, card.target_languages) == (["en", "de"], list(LANGUAGES))
    test = Manifest(root / "data" / "test")
    soundfile.write(tmp_path / "mixed.wav", test.samples(0), SAMPLE_RATE)
    asked = [
        "--model",
        str(trained),
        "--format",
        "json",
        "--out",
        str(tmp_path),
        "--no-guard",
        "--threads",
        "1",
    ]
    assert main(["translate", str(tmp_path / "mixed.wav"), "--to", "mixed", *asked]) == 0
    assert main(["transcribe", str(tmp_path / "mixed.wav"), *asked]) == 0
    as_spoken, transcript = (
        json.loads((tmp_path / f"mixed{ending}.json").read_text())["segments"] for ending in (".mul", "")
    )
    assert {segment["target_language"] for segment in as_spoken} == {MIXED}
    assert {segment["target_language"] for segment in transcript} <= {"en", "de"}
    command = ["evaluate", str(root / "data" / "test"), "--model", str(trained), "--out", str(tmp_path)]
    assert main([*command, "--to", "mul,de", "--no-speech", "0", "--threads", "1"]) == 0
    lines = [line for line in read_lines(tmp_path / "hypotheses.jsonl") if line.target == MIXED]
    assert {line.reference for line in lines} == {u.text for u in test}
    numbers = json.loads((tmp_path / MANIFEST_FILE).read_text())["numbers"]
    of_mixed = {n["metric"]: n["task"] for n in numbers if n["group"] == "pair" and n["member"] == "de-mul"}
    assert of_mixed["WER"] == "transcription"
    capsys.readouterr()
    assert main(["models", "show", str(trained)]) == 0
    assert "mul" in capsys.readouterr().out


def test_other_families_have_no_such_target(root: Path, tmp_path: Path) -> None:
    make_whisper(tmp_path / "whisper")
    recipe = fine_tuning_recipe(root / "data" / "train", tmp_path / "whisper", 1, **CHANGES)
    with pytest.raises(SprachbundError, match="is a target of conformers, not of a whisper model"):
        run(recipe, tmp_path / "run", report=lambda line: None)


def test_a_model_without_the_token_says_so(root: Path, tmp_path: Path) -> None:
    recipe = fine_tuning_recipe(root / "data" / "train", root / "start", 1, languages=LANGUAGES)
    with pytest.raises(SprachbundError, match=r'not mul; .* set fine_tuning.new_languages = {mul = "mean"}'):
        run(recipe, tmp_path / "run", report=lambda line: None)
