"""`units fit`, `units encode` and `units show` as a person runs them."""

import json
from pathlib import Path

import numpy as np
import pytest

from sprachbund.data.manifest import Manifest
from tests.stories.support import Ran, command
from tests.units.made import conformer, wav2vec, write_corpus

SMALL = (
    "--clusters",
    "8",
    "--unit-pieces",
    "24",
    "--text-pieces",
    "30",
    "--share",
    "1",
    "--kmeans-batch",
    "64",
)
FIT = (*SMALL, "--n-init", "2", "--layer", "2")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("units")
    conformer(root / "model")
    write_corpus(root / "corpus")
    assert command("units", "fit", root / "model", root / "corpus", "--out", root / "units", *FIT).code == 0
    assert command("units", "encode", root / "units", root / "corpus", "--out", root / "encoded").code == 0
    return root


def failed(ran: Ran, *parts: str, code: int = 1) -> None:
    assert ran.code == code, ran.err
    assert len(ran.error_lines) == 1, ran.err
    for part in parts:
        assert part in ran.error_lines[0]


def test_fit_says_what_it_takes_and_what_came_out(root: Path, tmp_path: Path) -> None:
    ran = command("units", "fit", root / "model", root / "corpus", "--out", tmp_path / "units", *FIT)
    assert ran.code == 0, ran.err
    assert "k-means sees 12 utterances" in ran.err
    for part in (
        "layer 2 of 2",
        "12.5 a second",
        "8 clusters from",
        "tokens for de, en, fr",
        "next: sprachbund units",
    ):
        assert part in ran.out
    again = command(
        "units", "fit", root / "model", root / "corpus", "--out", tmp_path / "units", *FIT, "--json"
    )
    result = json.loads(again.out)
    assert (
        result["vocabulary_size"]
        == json.loads(command("units", "show", root / "units", "--json").out)["vocabulary_size"]
    )
    assert result["files"] == json.loads((root / "units" / "units.json").read_text())["files"]


def test_encode_tells_and_writes_json(root: Path, tmp_path: Path) -> None:
    ran = command(
        "units",
        "encode",
        root / "units",
        root / "corpus",
        "--out",
        tmp_path / "e",
        "--speed",
        "1.1",
        "--json",
    )
    result = json.loads(ran.out)
    assert (result["utterances"], result["speed"], result["skipped"]) == (12, 1.1, [])
    ran = command("units", "encode", root / "units", root / "corpus", "--out", root / "encoded")
    assert "12 utterances" in ran.out
    assert "units without repeats, in 1 shards" in ran.out


def test_a_model_that_moved_is_named_again(root: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    (tmp_path / "model").mkdir()
    for path in (root / "model").iterdir():
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    command("units", "fit", tmp_path / "model", root / "corpus", "--out", tmp_path / "units", *FIT)
    (tmp_path / "model").rename(moved)
    wanted = ("units", "encode", tmp_path / "units", root / "corpus", "--out", tmp_path / "e")
    failed(command(*wanted), "there is no directory")
    assert command(*wanted, "--model", moved).code == 0
    failed(command(*wanted, "--model", wav2vec(tmp_path / "w")), "is not the model that")


def test_show_tells_and_draws(root: Path, tmp_path: Path) -> None:
    ran = command(
        "units", "show", root / "units", root / "encoded", "--out", tmp_path / "u.png", "--ratio", "3"
    )
    assert ran.code == 0, ran.err
    for part in (
        "characters, spread evenly",
        "PNMI",
        "by chance",
        "bits",
        "log-mel would be",
    ):
        assert part in ran.out
    assert "made 3 times as long" in ran.out
    assert (tmp_path / "u.png").stat().st_size > 10_000
    result = json.loads(command("units", "show", root / "units", root / "encoded", "--json").out)
    assert set(result) >= {"agreement", "by_chance", "sizes", "lengths", "ctc", "perplexity"}


def test_phones_have_the_times_of_the_recording_at_every_speed(root: Path, tmp_path: Path) -> None:
    encoded, table = tmp_path / "fast", tmp_path / "phones.tsv"
    wanted = ("units", "encode", root / "units", root / "corpus", "--out", encoded, "--speed", "1.5")
    assert command(*wanted).code == 0
    lines = [  # the end of each recording, which lies behind the end at that speed
        f"{utterance.id}\t{utterance.duration_s * 0.7}\t{utterance.duration_s}\tend"
        for utterance in Manifest(root / "corpus")
    ]
    table.write_text("\n".join(["id\tstart_s\tend_s\tphone", *lines]))
    ran = command("units", "show", root / "units", encoded, "--phones", table, "--json")
    assert ran.code == 0, ran.err
    shown = json.loads(ran.out)
    assert 0.1 < 1 - shown["unlabelled_frames"] / shown["frames"] < 0.5


def test_bad_input(root: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    model, corpus, units = root / "model", root / "corpus", root / "units"
    failed(command("units", "fit", model, tmp_path, *out, *FIT), "holds no cuts")
    failed(command("units", "fit", tmp_path, corpus, *out, *FIT), "no config.json")
    failed(command("units", "fit", model, corpus, *out, *FIT, "--layer", "7"), "has layers 1 to 2, not 7")
    failed(command("units", "fit", model, corpus, *out, *FIT, "--unit-pieces", "5"), "5 unit pieces", code=2)
    failed(command("units", "fit", model, corpus, *out, *FIT, "--share", "0"), "share is 0", code=2)
    failed(command("units", "fit", model, corpus, *out, *FIT, "--languages", "ru"), "holds no speech in ru")
    failed(command("units", "fit", model, corpus, *out, *FIT, "--device", "abacus"), "device 'abacus'")
    failed(
        command("units", "fit", model, corpus, "--out", units, *FIT, "--seed", "1"),
        "was begun with kmeans.seed 0, not 1",
    )
    failed(command("units", "fit", model, corpus, "--out", tmp_path / "k", *FIT, "--clusters", "9000",
                   "--unit-pieces", "0"), "frames cannot make 9000 clusters")  # fmt: skip
    failed(command("units", "encode", tmp_path, corpus, *out), "make it with `sprachbund units fit`")
    failed(command("units", "encode", units, corpus, *out, "--speed", "9"), "speed is 9", code=2)
    failed(command("units", "show", units, tmp_path), "make it with `sprachbund units encode`")
    failed(command("units", "show", units, root / "encoded", "--out", "u.svg"), "has to end in .png", code=2)
    failed(command("units", "show", units, "--phones", "p.tsv"), "--phones needs a corpus", code=2)
    assert not (tmp_path / "out").exists()
    short = write_corpus(tmp_path / "short", 3, [np.zeros(10, np.float32)])
    failed(command("units", "encode", units, short, *out), "1 of 4 utterances", "extra0", "--skip-bad")
    ran = command("units", "encode", units, short, *out, "--skip-bad")
    assert "1 left out, the first is extra0" in ran.out
