import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import homogeneity_score

from sprachbund.errors import SprachbundError
from sprachbund.models.tokens.directory import Units
from sprachbund.models.tokens.strings import collapse, expand, to_string, to_units
from sprachbund.units.encoded import EncodedCorpus, Encoding, UnitUtterance, encode
from sprachbund.units.fit import Fit, make_units
from sprachbund.units.lengths import too_long_for_ctc
from sprachbund.units.measures import (
    NOTHING,
    Agreement,
    Characters,
    Measuring,
    Phones,
    UnitMeasures,
    agreement,
    draw,
    letters,
    measure,
    ordered,
    shuffled,
)
from tests.units.made import TONE_S, computing, extraction, options, wav2vec, write_corpus


def line(labels: list[int], text: str = "ab") -> UnitUtterance:
    units, durations = collapse(np.array(labels))
    return UnitUtterance(
        id="u1",
        units=to_string(units),
        durations=tuple(durations.tolist()),
        duration_s=len(labels) / 50,
        language="en",
        speaker="",
        text=text,
        translations={},
    )


def table(clusters: list[int], labels: list[int]) -> np.ndarray:
    counts = np.zeros((max(clusters) + 1, max(labels) + 1), np.int64)
    np.add.at(counts, (clusters, labels), 1)
    return counts


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=2, max_size=60))
def test_purity_and_information_are_those_of_brute_force(frames: list[tuple[int, int]]) -> None:
    clusters, labels = [c for c, _ in frames], [label for _, label in frames]
    result = agreement(table(clusters, labels))
    best = {c: max(set(x := [b for a, b in frames if a == c]), key=x.count) for c in clusters}
    assert result.label_purity == pytest.approx(sum(best[c] == label for c, label in frames) / len(frames))
    likely = {b: max(set(x := [a for a, c in frames if c == b]), key=x.count) for b in labels}
    assert result.cluster_purity == pytest.approx(
        sum(likely[label] == c for c, label in frames) / len(frames)
    )
    if len(set(labels)) > 1:
        assert result.pnmi == pytest.approx(homogeneity_score(labels, clusters), abs=1e-9)


def test_agreement_at_its_ends() -> None:
    assert agreement(np.diag([3, 4, 5])).pnmi == pytest.approx(1)
    assert agreement(np.diag([3, 4, 5])).label_purity == 1
    assert agreement(np.ones((4, 5), np.int64)).pnmi == pytest.approx(0, abs=1e-12)
    assert agreement(np.zeros((3, 1), np.int64)).pnmi == 0


def test_letters_and_how_they_are_spread() -> None:
    assert letters("Ça va, n° 5? Straße") == [*"çavan5strasse"]
    assert letters("नि") == ["नि"]
    aligner = Characters()
    result = aligner.align(line([0] * 7, "B a b"))
    names = list(aligner.labels.numbers)
    assert [names[i] for i in result] == list("bbaaabb")
    assert aligner.align(line([0] * 3, "?!")).tolist() == [NOTHING] * 3


def test_phones_are_those_at_the_middle_of_each_frame(tmp_path: Path) -> None:
    path = tmp_path / "phones.tsv"
    path.write_text("id\tstart_s\tend_s\tphone\nu1\t0.0\t0.05\tS\nu1\t0.05\t0.09\ta\nother\t0\t9\tx\n")
    phones = Phones(path, 0.02)
    names = list(phones.labels.numbers)
    result = phones.align(line([0] * 6))
    assert [names[i] if i != NOTHING else "-" for i in result] == ["S", "S", "a", "a", "-", "-"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("id\tstart\n", ":1: the columns have to be id, start_s, end_s, phone"),
        ("id\tstart_s\tend_s\tphone\nu1\t0\tx\ta\n", r":2: 'u1\\t0\\tx\\ta' is not id"),
        (None, "cannot be read"),
    ],
)
def test_tables_of_phones_that_cannot_be_read(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "p.tsv").write_text(content)
    with pytest.raises(SprachbundError, match=said):
        Phones(tmp_path / "p.tsv", 0.02)


@given(st.lists(st.integers(-1, 3), max_size=30), st.integers(0, 9))
def test_chance_keeps_what_there_is(labels: list[int], seed: int) -> None:
    result = shuffled(np.array(labels, np.int64), np.random.default_rng(seed))
    assert sorted(result.tolist()) == sorted(labels)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Units, EncodedCorpus]:
    root = tmp_path_factory.mktemp("measures")
    model, corpus = extraction(wav2vec(root / "wavlm"), 1), write_corpus(root / "corpus", 14)
    kmeans = {"clusters": 16, "batch_size": 256, "n_init": 3}
    fit = Fit(
        extraction=model,
        data=(corpus,),
        out=root / "units",
        options=options(kmeans=kmeans, vocabulary={"unit_pieces": 40, "text_pieces": 40}),
        computing=computing(),
    )
    units = make_units(fit)
    encoding = Encoding(
        units=fit.out, extraction=model, data=corpus, out=root / "encoded", computing=computing()
    )
    return units, encode(encoding)


@pytest.fixture(scope="module")
def measured(encoded: tuple[Units, EncodedCorpus]) -> UnitMeasures:
    return measure(*encoded, Characters())


def test_letters_that_are_planted_are_found(
    encoded: tuple[Units, EncodedCorpus], measured: UnitMeasures
) -> None:
    """Every letter is a tone of the same length, so spreading letters evenly is the truth here."""
    assert measured.against.startswith("characters, spread evenly")
    assert sorted(measured.labels) == list("abcdef")
    assert measured.agreement.pnmi > measured.by_chance.pnmi + 0.05
    assert measured.agreement.label_purity > measured.by_chance.label_purity + 0.05
    pairs = [
        (cluster, letter)
        for u in encoded[1]
        for t, cluster in enumerate(expand(to_units(u.units), np.array(u.durations)))
        for letter in [u.text[int((t + 0.5) * len(u.text) / sum(u.durations))]]
    ]
    wanted = homogeneity_score([letter for _, letter in pairs], [cluster for cluster, _ in pairs])
    assert measured.agreement.pnmi == pytest.approx(wanted, abs=1e-9)


def test_phones_of_a_file(
    encoded: tuple[Units, EncodedCorpus], measured: UnitMeasures, tmp_path: Path
) -> None:
    lines = [
        f"{u.id}\t{i * TONE_S}\t{(i + 1) * TONE_S}\t{letter}"
        for u in encoded[1]
        for i, letter in enumerate(u.text)
        if u.id != "u003"
    ]
    path = tmp_path / "phones.tsv"
    path.write_text("\n".join(["id\tstart_s\tend_s\tphone", *lines]))
    result = measure(*encoded, Phones(path, 0.02))
    assert result.against == "phones"
    assert result.unlabelled == sum(sum(u.durations) for u in encoded[1] if u.id == "u003")
    assert result.agreement.pnmi > result.by_chance.pnmi + 0.05


def test_sizes_are_those_counted_by_hand(
    encoded: tuple[Units, EncodedCorpus], measured: UnitMeasures
) -> None:
    units, lines = encoded
    seconds = sum(u.duration_s for u in lines)
    string = "".join(u.units for u in lines)
    entropy = -sum(p * math.log2(p) for c in set(string) for p in [string.count(c) / len(string)])
    sizes = measured.sizes
    assert sizes.units_per_s == pytest.approx(len(string) / seconds)
    assert sizes.bits_per_s == pytest.approx(entropy * len(string) / seconds)
    assert sizes.flat_bits_per_s == pytest.approx(4 * len(string) / seconds)
    assert sizes.stored_bytes == 3 * len(string)
    assert sizes.log_mel_bytes == pytest.approx(seconds * 100 * 80 * 4, rel=1e-4)
    assert sizes.audio_bytes == pytest.approx(seconds * 32_000, rel=1e-4)
    assert sizes.file_bytes == sum((lines.directory / s.file).stat().st_size for s in lines.info.shards)
    assert sizes.log_mel_ratio == pytest.approx(sizes.log_mel_bytes / sizes.stored_bytes)
    pieces = [units.vocabulary.encode_units(u.units) for u in lines]
    assert sizes.pieces_per_s == pytest.approx(sum(map(len, pieces)) / seconds)
    assert measured.frames.sum() == sum(sum(u.durations) for u in lines)
    assert measured.runs.sum() == len(string)
    assert (measured.runs * np.arange(1, len(measured.runs) + 1)).sum() == measured.frames.sum()


def test_lengths_beside_text(encoded: tuple[Units, EncodedCorpus], measured: UnitMeasures) -> None:
    assert measured.lengths is not None
    assert measured.lengths.ratio == encoded[0].config.mean_length_ratio
    if 1 < measured.lengths.ratio < 6:
        assert abs(measured.lengths.off) < 0.01
    twice = measure(*encoded, Characters(), ratio=2, stride=4)
    assert twice.lengths is not None
    assert twice.lengths.text_pieces == pytest.approx(
        2 * measured.lengths.text_pieces / measured.lengths.ratio
    )
    assert twice.targets == {"fr": 14}
    assert twice.too_long.get("fr", 0) >= measured.too_long.get("fr", 0)
    with pytest.raises(SprachbundError, match="give 1 to 6"):
        measure(*encoded, Characters(), ratio=9)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_frames_for_ctc_are_those_of_training_which_reads_the_end_too(
    encoded: tuple[Units, EncodedCorpus], stride: int
) -> None:
    units, lines = encoded
    measured = measure(*encoded, Characters(), stride=stride)
    lengths = [len(units.vocabulary.encode_units(u.units)) + 1 for u in lines for _ in u.translations]
    targets = [units.vocabulary.encode_text(text) for u in lines for text in u.translations.values()]
    names = [f"{u.id} into {tag}" for u in lines for tag in u.translations]
    long = too_long_for_ctc(names, lengths, targets, stride=stride)
    assert sum(measured.too_long.values()) == len(long)
    assert measured.too_long_examples == long[:5]


def test_a_ratio_of_nought_is_refused_and_not_the_mean(encoded: tuple[Units, EncodedCorpus]) -> None:
    with pytest.raises(SprachbundError, match=r"text is to be made 0\.0 times as long; give 1 to 6"):
        measure(*encoded, Characters(), ratio=0.0)


def test_the_picture(measured: UnitMeasures, tmp_path: Path) -> None:
    draw(measured, tmp_path / "units.png", "units")
    assert (tmp_path / "units.png").read_bytes().startswith(b"\x89PNG")
    counts = np.array([[0, 9, 0], [5, 0, 4], [0, 0, 0], [8, 1, 0]])
    labels, clusters = ordered(counts, 2)
    assert labels.tolist() == [0, 1]
    assert clusters.tolist() == [1, 3, 0]


def test_speech_without_transcripts_is_measured_and_drawn(
    encoded: tuple[Units, EncodedCorpus], tmp_path: Path
) -> None:
    units, spoken = encoded
    measuring = Measuring(units, Characters())
    for utterance in spoken:
        measuring.add(replace(utterance, text=""))
    result = measuring.result(1)
    assert result.unlabelled == result.frames.sum() > 0
    assert result.agreement == result.by_chance == Agreement(label_purity=0, cluster_purity=0, pnmi=0)
    assert result.as_json()["labels"] == 0
    draw(result, tmp_path / "units.png", "a title")
    assert (tmp_path / "units.png").stat().st_size > 10_000


def test_units_that_are_not_this_kmeanss_are_refused(encoded: tuple[Units, EncodedCorpus]) -> None:
    with pytest.raises(SprachbundError, match="none of 16 units"):
        Measuring(encoded[0], Characters()).add(line([1, 99]))
