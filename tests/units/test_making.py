"""Units from corpus to corpus: the same files however the work was shared out, broken off and taken up again."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.models.tokens.directory import Identity, Units
from sprachbund.models.tokens.sources import open_source
from sprachbund.models.tokens.strings import to_units
from sprachbund.units.encoded import EncodedCorpus, Encoding, FeatureJob, encode
from sprachbund.units.fit import Fit, estimate, make_units
from tests.units.made import computing, conformer, extraction, options, tones, wav2vec, write_corpus


class Made:
    """A model, a corpus, units and the corpus as units."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = conformer(root / "model")
        self.corpus = write_corpus(root / "corpus")
        self.fit = Fit(
            extraction=extraction(self.model),
            data=(self.corpus,),
            out=root / "units",
            options=options(),
            computing=computing(),
        )
        self.units = make_units(self.fit)
        self.encoding = Encoding(
            units=root / "units",
            extraction=self.fit.extraction,
            data=self.corpus,
            out=root / "encoded",
            computing=computing(),
        )
        self.encoded = encode(self.encoding)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("making"))


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_units_are_those_of_the_steps_by_hand(made: Made) -> None:
    source, manifest = open_source(made.model, 2), Manifest(made.corpus)
    centroids = np.load(made.root / "units" / "kmeans.npy").astype(np.float64)
    assert len(made.encoded) == len(manifest) == 12
    for utterance, line in zip(manifest, made.encoded, strict=True):
        index = list(manifest).index(utterance)
        frames = source.features([manifest.samples(index)])[0]
        labels = np.square(frames[:, None] - centroids[None]).sum(-1).argmin(1)
        assert to_units(line.with_repeats).tolist() == labels.tolist()
        assert (line.id, line.text, line.language) == (utterance.id, utterance.text, utterance.language)
        assert line.translations == utterance.translations == {"fr": utterance.text.upper()}
        assert line.duration_s == pytest.approx(utterance.duration_s)
        assert all(a != b for a, b in zip(line.units, line.units[1:], strict=False))
    assert made.encoded.info.frames == made.units.config.num_frames
    assert line.text_in("fr") == line.text.upper()
    assert line.text_in("ru") is None


def test_lines_are_read_at_random_as_in_order(made: Made) -> None:
    assert [made.encoded[i] for i in range(len(made.encoded))] == list(made.encoded)
    assert len(made.encoded.info.shards) == 3


def test_what_is_written_down(made: Made) -> None:
    config = made.units.config
    assert (config.source.layer, config.source.width, config.source.frame_s) == (2, 32, 0.08)
    assert config.languages == ("de", "en", "fr")
    assert set(config.files) == {"kmeans.npy", "text.model", "units.model"}
    assert config.data[0].utterances == 12
    assert not (made.root / "units" / "parts").exists()
    pieces = [len(made.units.vocabulary.encode_units(u.units)) for u in made.encoded]
    texts = [len(made.units.vocabulary.encode_text(u.text)) for u in made.encoded]
    assert config.mean_length_ratio == pytest.approx(max(1, sum(pieces) / sum(texts)), abs=0.005)
    needed = estimate(made.fit)
    assert (needed.utterances, needed.disk_bytes) == (12, 8 * 32 * needed.frames)
    assert needed.frames == pytest.approx(config.num_frames, rel=0.15)


def test_any_order_makes_the_same_features(made: Made, tmp_path: Path) -> None:
    job = made.fit.job
    result = []
    for order in ((0, 1, 2), (2, 0, 1)):
        out = tmp_path / str(order[0])
        out.mkdir()
        for number in order:
            replace(job, out=out).prepare()(number, lambda inside: None)
        result.append(files(out))
    assert len(result[0]) == 3
    assert result[0] == result[1]


@pytest.mark.slow
def test_real_processes_make_the_same_units(made: Made, tmp_path: Path) -> None:
    ticks: list[tuple[int, int]] = []
    two = replace(made.encoding, out=tmp_path / "two", computing=computing(workers=2))
    encode(two, lambda done, total: ticks.append((done, total)))
    assert files(tmp_path / "two") == files(made.root / "encoded")
    assert ticks[-1][1] == 12


def test_actors_of_a_ray_cluster_make_the_same_units(made: Made, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    encode(replace(made.encoding, out=tmp_path / "ray", computing=computing(workers=2, ray="local")))
    assert files(tmp_path / "ray") == files(made.root / "encoded")


class KilledError(Exception):
    """The plug was pulled."""


def pull_the_plug(after: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= after:
            raise KilledError

    return progress


@pytest.mark.parametrize("after", [2, 5, 12])
def test_broken_off_and_taken_up_encoding_is_as_unbroken(made: Made, tmp_path: Path, after: int) -> None:
    again = replace(made.encoding, out=tmp_path / "encoded")
    with pytest.raises(KilledError):
        encode(again, pull_the_plug(after))
    there = set(files(again.out))
    assert len([name for name in there if name.endswith(".jsonl")]) == (after - 1) // 4
    encode(again)
    assert files(again.out) == files(made.root / "encoded")


def test_a_damaged_shard_of_an_unfinished_encoding_has_to_go(made: Made, tmp_path: Path) -> None:
    """The advice to run the command again would lead in a circle: what is there is not made again."""
    again = replace(made.encoding, out=tmp_path / "encoded")
    shutil.copytree(made.root / "encoded", again.out)
    (again.out / "manifest.json").unlink()
    shard = again.out / "units.00001.jsonl"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(
        SprachbundError, match=r"units\.00001\.jsonl, line \d.*; delete units\.00001\.jsonl, and the same"
    ):
        encode(again)
    shard.unlink()
    encode(again)
    assert files(again.out) == files(made.root / "encoded")


@pytest.mark.parametrize(
    "step", ["extracting features", "clustering", "encoding the share", "finding pieces"]
)
def test_broken_off_and_taken_up_units_are_as_unbroken(made: Made, tmp_path: Path, step: str) -> None:
    again = replace(made.fit, out=tmp_path / "units")

    def tell(label: str, done: int, total: int) -> None:
        if label == step and done >= total / 2:
            raise KilledError

    with pytest.raises(KilledError):
        make_units(again, tell)
    assert not (again.out / "units.json").exists()
    with pytest.raises(
        SprachbundError, match=r"units.json does not exist; make it with `sprachbund units fit`"
    ):
        Units(again.out)
    prepared: list[int] = []
    make_units(
        again, lambda label, done, total: prepared.append(done) if label == "extracting features" else None
    )
    assert files(again.out) == files(made.root / "units")
    assert (len(prepared) == 0) == (step != "extracting features")


def test_other_clusters_are_made_of_the_features_there_are(made: Made, tmp_path: Path) -> None:
    greedy = options(
        kmeans={"clusters": 5000, "batch_size": 64}, vocabulary={"unit_pieces": 0, "text_pieces": 30}
    )
    again = replace(made.fit, out=tmp_path / "units", options=greedy)
    with pytest.raises(SprachbundError, match="frames cannot make 5000 clusters"):
        make_units(again)
    seen: list[str] = []
    make_units(replace(made.fit, out=again.out), lambda label, done, total: seen.append(label))
    assert "extracting features" not in seen
    assert files(again.out) == files(made.root / "units")


def test_what_is_whole_is_not_made_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FeatureJob, "prepare", None)
    assert make_units(made.fit).identity == made.units.identity
    with pytest.raises(SprachbundError, match=r"was begun with share 1.0, not 0.5"):
        make_units(replace(made.fit, options=options(share=0.5)))
    with pytest.raises(SprachbundError, match=r"was begun with speed 1.0, not 1.1"):
        encode(replace(made.encoding, speed=1.1))


def test_a_smaller_share_is_part_of_a_larger_one(made: Made) -> None:
    def ids(share: float, *languages: str) -> set[str]:
        chosen = replace(made.fit, options=options(share=share, languages=languages)).job.chosen
        return {chosen.utterance(i).id for i in range(len(chosen.indices))}

    assert ids(0.3) < ids(0.7) < ids(1.0)
    assert ids(1.0, "de") == {f"u{i:03d}" for i in range(1, 12, 2)}
    with pytest.raises(SprachbundError, match=r"holds no speech in ru; it holds de, en"):
        ids(1.0, "ru")
    with pytest.raises(SprachbundError, match=r"is no utterance"):
        make_units(replace(made.fit, out=made.root / "none", options=options(share=1e-9)))


def test_speech_at_another_speed(made: Made, tmp_path: Path) -> None:
    faster = encode(replace(made.encoding, out=tmp_path / "faster", speed=1.25))
    for fast, own in zip(faster, made.encoded, strict=True):
        assert fast.id == own.id
        assert fast.duration_s == pytest.approx(own.duration_s / 1.25, abs=1e-5)
        assert sum(fast.durations) == pytest.approx(sum(own.durations) / 1.25, abs=1.1)
    assert faster.info.hours == pytest.approx(made.encoded.info.hours / 1.25, abs=1e-6)
    with pytest.raises(SprachbundError, match=r"speed is 3"):
        replace(made.encoding, speed=3.0)


def test_utterances_of_no_frames_are_named_and_counted(made: Made, tmp_path: Path) -> None:
    nothing, blip = np.zeros(0, np.float32), tones("a")[:100]
    corpus = write_corpus(tmp_path / "corpus", 6, [nothing, tones("ab"), blip])
    bad = replace(made.encoding, data=corpus, out=tmp_path / "out")
    with pytest.raises(
        SprachbundError,
        match=r"2 of 9 utterances .* the first is extra0: 0 samples are no frame .* --skip-bad",
    ):
        encode(bad)
    encoded = encode(replace(bad, skip_bad=True))
    assert [(s.id, s.reason) for s in encoded.info.skipped] == [
        ("extra0", "0 samples are no frame of the encoder"),
        ("extra2", "100 samples are no frame of the encoder"),
    ]
    assert [u.id for u in encoded] == [*(f"u{i:03d}" for i in range(6)), "extra1"]
    assert encoded.info.corpus.utterances == encoded.info.utterances + 2 == 9
    units = make_units(replace(made.fit, data=(corpus,), out=tmp_path / "units"))
    assert units.config.no_frames == ("extra0", "extra2")


def test_units_of_others_are_refused(made: Made, tmp_path: Path) -> None:
    other = make_units(
        replace(made.fit, out=tmp_path / "other", options=options(kmeans={"clusters": 7, "batch_size": 64}))
    )
    with pytest.raises(SprachbundError, match=r"encoded is of another k-means .* encode the speech again"):
        EncodedCorpus(made.root / "encoded", other)
    vocabulary = options(vocabulary={"unit_pieces": 24, "text_pieces": 22})
    same_kmeans = make_units(replace(made.fit, out=tmp_path / "same", options=vocabulary))
    assert len(EncodedCorpus(made.root / "encoded", same_kmeans)) == 12  # strings know nothing of pieces
    ours, theirs = made.units.identity, same_kmeans.identity
    assert ours.kmeans == theirs.kmeans
    with pytest.raises(SprachbundError, match=r"the checkpoint is of another vocabulary"):
        ours.check(theirs, "the checkpoint")
    telephone = Identity(**{**ours.model_dump(), "sample_rate": 8000})
    with pytest.raises(SprachbundError, match=r"another sampling rate \(8000, wanted 16000\)"):
        ours.check(telephone, "it", strings_only=True)
    model = extraction(wav2vec(tmp_path / "wavlm"))
    with pytest.raises(SprachbundError, match=r"is not the model that .* was made of"):
        encode(replace(made.encoding, extraction=model, out=tmp_path / "out"))
    with pytest.raises(SprachbundError, match=r"made of layer 2, not 1"):
        encode(replace(made.encoding, extraction=extraction(made.model, 1), out=tmp_path / "out"))


def test_files_that_changed_are_refused(made: Made, tmp_path: Path) -> None:
    for name, match in (("kmeans.npy", "is not the file"), ("units.model", "is missing")):
        copy = tmp_path / name
        copy.mkdir()
        for path, content in files(made.root / "units").items():
            (copy / path).write_bytes(content)
        (copy / name).write_bytes(b"x") if "not" in match else (copy / name).unlink()
        with pytest.raises(SprachbundError, match=f"{name} {match}"):
            Units(copy)
    copy = tmp_path / "encoded"
    copy.mkdir()
    for path, content in files(made.root / "encoded").items():
        (copy / path).write_bytes(content)
    shard = copy / "units.00001.jsonl"
    shard.write_bytes(shard.read_bytes().replace(b'"speaker":"t"', b'"speaker":"x"'))
    with pytest.raises(SprachbundError, match=r"units.00001.jsonl has changed"):
        EncodedCorpus(copy)
    (copy / "manifest.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(
        SprachbundError, match=r"manifest.json: format: Input should be 1 \(it is 2\); make it with"
    ):
        EncodedCorpus(copy)


def test_an_encoder_of_transformers_and_one_vocabulary(tmp_path: Path) -> None:
    model, corpus = wav2vec(tmp_path / "wavlm"), write_corpus(tmp_path / "corpus", 6)
    (tmp_path / "more.txt").write_text("zebra\nzoo\n")
    fit = Fit(
        extraction=extraction(model),
        data=(corpus,),
        out=tmp_path / "units",
        options=options(vocabulary={"form": "single", "unit_pieces": 30, "text_pieces": 40}),
        texts=(tmp_path / "more.txt",),
        computing=computing(),
    )
    units = make_units(fit)
    assert units.vocabulary.decode_text(units.vocabulary.encode_text("zoo")) == "zoo"
    encoding = Encoding(
        units=fit.out,
        extraction=fit.extraction,
        data=corpus,
        out=tmp_path / "encoded",
        computing=computing(),
    )
    for utterance in encode(encoding):
        ids = units.vocabulary.encode_units(utterance.units, np.random.default_rng(1))
        assert units.vocabulary.decode_units(ids) == utterance.units
        assert sum(utterance.durations) == pytest.approx(utterance.duration_s * 50, abs=1.5)
    (tmp_path / "more.txt").write_bytes(b"\xff")
    with pytest.raises(SprachbundError, match=r"more.txt is not UTF-8"):
        make_units(replace(fit, out=tmp_path / "bad"))


def test_texts_of_some_languages_alone_make_the_vocabulary(made: Made, tmp_path: Path) -> None:
    chosen = replace(made.fit, out=tmp_path / "fr", options=options(text_languages=("en", "fr")))
    units = make_units(chosen)
    assert units.config.languages == ("en", "fr")
    assert made.units.config.languages == ("de", "en", "fr")


def test_speech_of_some_languages_alone_is_encoded(made: Made, tmp_path: Path) -> None:
    wanted = replace(made.encoding, out=tmp_path / "de", languages=("de",))
    assert {utterance.language for utterance in encode(wanted)} == {"de"}
    with pytest.raises(SprachbundError, match="was begun with languages"):
        encode(replace(wanted, languages=()))


@pytest.mark.parametrize("where", ["", "parts"])
def test_a_folder_with_something_else_in_it_is_left_alone(made: Made, tmp_path: Path, where: str) -> None:
    theirs = tmp_path / "work" / where / "thesis.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("years")
    with pytest.raises(
        SprachbundError, match=rf"{theirs.parent} holds something else already; name another --out"
    ):
        make_units(replace(made.fit, out=tmp_path / "work"))
    assert theirs.read_text() == "years"
    if not where:
        with pytest.raises(SprachbundError, match="holds something else already"):
            encode(replace(made.encoding, out=tmp_path / "work"))
