"""Tar shards: the corpus that was packed, whoever reads it, on however many processes, from disks and from stores."""

import io
import shutil
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.data import shards as module
from sprachbund.data.batching import BatchingOptions, tempered
from sprachbund.data.loading import Corpus, ExampleOptions, PieceExamples, ShardedCorpus, batches
from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.data.shards import INDEX_FILE, Shards, encoded_sound, open_corpus, pack, recording_name
from sprachbund.errors import SprachbundError
from sprachbund.training.loop import train
from tests.training import made
from tests.training.ranks import fork_ranks

NUM_UTTERANCES, SHARD = 90, 7
WINDOW = 5
OPTIONS = BatchingOptions(batch_s=4.0, max_utterances=12)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shards") / "corpus"
    made.make_corpus(directory, NUM_UTTERANCES)
    return directory


@pytest.fixture(scope="module")
def packed(corpus: Path) -> Path:
    return pack(corpus, corpus.parent / "packed", shard_utterances=SHARD).directory


def sharded(*paths: Path | str, repeats: float = 1.0, window: int = WINDOW) -> ShardedCorpus:
    model = made.make_model()
    examples = PieceExamples(model.tokenizer, model.transcript_tokenizer, made.LANGUAGES)
    options = ExampleOptions(rows_per_utterance=2, max_tokens=31, speeds=(0.9, 1.1))
    return ShardedCorpus([(Shards(path), repeats) for path in paths], examples, options, window)


def by_id(corpus: Manifest) -> dict[str, tuple[Any, bytes]]:
    return {u.id: (u, corpus.samples(i).tobytes()) for i, u in enumerate(corpus)}


def test_flac_holds_every_sample_and_every_text(corpus: Path, packed: Path) -> None:
    there, shards = Manifest(corpus), open_corpus(packed)
    assert isinstance(shards, Shards)
    assert by_id(shards) == by_id(there)
    assert [u.id for u in shards] != [u.id for u in there]  # shuffled
    assert shards.num_shards == -(-NUM_UTTERANCES // SHARD)
    assert {k: v for k, v in shards.summary().items() if k != "hours"} == {
        k: v for k, v in there.summary().items() if k != "hours"
    }
    assert shards.info() == there.info()
    assert sorted(shards.only([3, 8]).durations_s) == sorted(shards.durations_s[[3, 8]])
    assert [u.id for u in shards.only([3, 8])] == [shards[3].id, shards[8].id]


def test_opus_is_smaller_and_sounds_alike(corpus: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal(48_000).astype(np.float32) * 0.05
    with ManifestWriter(tmp_path / "noise") as writer:
        writer.add(noise, text="a", language="en", speaker="", utterance_id="noise")
    opus = pack(tmp_path / "noise", tmp_path / "opus", codec="opus")
    flac = pack(tmp_path / "noise", tmp_path / "flac")
    assert opus.index.shards[0].recording_bytes < flac.index.shards[0].recording_bytes / 3
    heard = opus.samples(0)
    assert heard.shape == noise.shape
    assert np.corrcoef(heard, noise)[0, 1] > 0.5
    again = pack(tmp_path / "noise", tmp_path / "again", codec="opus")
    assert again.index == opus.index  # with the checksums of all sound


@pytest.mark.parametrize("num_samples", [1, 319, 320, 16_001])
def test_opus_keeps_the_length_and_the_time_of_sound(num_samples: int) -> None:
    sound = (np.random.default_rng(0).standard_normal(num_samples) * 2000).astype(np.int16)
    heard, rate = soundfile.read(io.BytesIO(encoded_sound(sound, "opus")))
    assert (len(heard), rate) == (num_samples, SAMPLE_RATE)
    if num_samples > SAMPLE_RATE:  # the samples of noise are alike at one shift alone
        alike = [abs(np.dot(heard[8:-8], np.roll(sound, shift)[8:-8])) for shift in range(-8, 9)]
        assert int(np.argmax(alike)) == 8


def test_lhotse_reads_them(packed: Path) -> None:
    from lhotse import CutSet

    ours, theirs = Shards(packed), list(CutSet.from_shar(in_dir=packed / "shards"))
    assert [cut.id for cut in theirs] == [u.id for u in ours]
    for index in (0, 40, NUM_UTTERANCES - 1):
        cut, utterance = theirs[index], ours[index]
        samples = cut.load_audio()[0]
        np.testing.assert_array_equal(np.rint(samples * 32768), np.rint(ours.samples(index) * 32767))
        assert cut.supervisions[0].text == utterance.text
        assert cut.supervisions[0].custom["translations"] == utterance.translations
    assert [cut.id for cut in ours.cuts()] == [cut.id for cut in theirs]


@pytest.mark.slow
def test_packing_goes_on_with_the_same_bytes(corpus: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    pack(corpus, out, shard_utterances=SHARD, workers=2)
    before = {path.name: path.read_bytes() for path in (packed / "shards").iterdir()}
    assert {path.name: path.read_bytes() for path in (out / "shards").iterdir()} == before
    assert (out / INDEX_FILE).read_bytes() == (packed / INDEX_FILE).read_bytes()
    with pytest.raises(
        SprachbundError,
        match=f"was begun with shard_utterances {SHARD}, not {SHARD + 1}; choose another --out",
    ):
        pack(corpus, out, shard_utterances=SHARD + 1)


def small_corpus(path: Path, text: str = "a") -> Path:
    with ManifestWriter(path) as writer:
        for n in range(4):
            sound = np.full(1600, 0.1 * n, np.float32)
            writer.add(sound, text=f"{text} {n}", language="en", speaker="", utterance_id=f"u{n}")
    return path


def test_packing_goes_on_with_the_same_corpus_alone(tmp_path: Path) -> None:
    out, changed = tmp_path / "packed", small_corpus(tmp_path / "changed", "b")
    corpus = small_corpus(tmp_path / "corpus")

    def break_off(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(corpus, out, shard_utterances=2, progress=break_off)
    corpus.rename(tmp_path / "before")
    changed.rename(corpus)
    with pytest.raises(
        SprachbundError, match=r"was begun with another content \(SHA-256 \w{12}, not \w{12}\); choose"
    ):
        pack(corpus, out, shard_utterances=2)
    done = pack(tmp_path / "before", out, shard_utterances=2)
    assert {u.text for u in done} == {f"a {n}" for n in range(4)}


def test_a_pack_that_is_done_ends_at_once(tmp_path: Path) -> None:
    out, corpus = tmp_path / "packed", small_corpus(tmp_path / "corpus")
    first = pack(corpus, out, shard_utterances=2)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "packing.json"}
    again = pack(corpus, out, shard_utterances=2, progress=lambda done, total: pytest.fail("packed again"))
    assert again.digest == first.digest
    assert {path: path.stat().st_mtime_ns for path in before if path.is_file()} == {
        path: time_ns for path, time_ns in before.items() if path.is_file()
    }
    with pytest.raises(SprachbundError, match="was begun with shard_utterances 2, not 3; choose"):
        pack(corpus, out, shard_utterances=3)


def heard(data: ShardedCorpus, rank: int, count: int, window: int, first: int = 0) -> list[list[str]]:
    """Ids of each batch of a process; none for a placeholder."""
    data.enter(window, (rank, count))
    plan = data.plan(OPTIONS, window)
    own = [batch[rank::count] for batch in plan[first:]]
    return [[data.utterance(int(i))[0].id for i in batch if i >= 0] for batch in own]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_utterance_once_a_pass(packed: Path, count: int) -> None:
    seen: Counter[str] = Counter()
    data = sharded(packed)
    assert data.windows == 2
    for window in range(data.windows):
        of_ranks = [heard(sharded(packed), rank, count, window) for rank in range(count)]
        assert len({len(batches) for batches in of_ranks}) == 1  # all make as many steps
        seen.update(name for rank in of_ranks for batch in rank for name in batch)
    assert seen == Counter({f"tone-{i}": 1 for i in range(NUM_UTTERANCES)})


def test_processes_read_their_own_shards_alone(packed: Path) -> None:
    held = []
    for rank in range(2):
        data = sharded(packed)
        made_batches = list(batches(data, OPTIONS, 0, share=(rank, 2)))
        assert all(batch.num_utterances for batch in made_batches)
        held.append({*data._shards[0]._files._open})
    assert not held[0] & held[1]
    assert {*held[0], *held[1]} == {number for _, number in sharded(packed)._entries(0)}


def test_passes_differ_and_fractions_take_whole_shards(packed: Path) -> None:
    data = sharded(packed)
    passes = [[e for w in range(2) for e in data._entries(2 * number + w)] for number in range(2)]
    assert passes[0] != passes[1]
    assert sorted(passes[0]) == sorted(passes[1])
    assert len(sharded(packed, repeats=2.5)._order(0)) == round(2.5 * 13)


def same(one: Any, other: Any) -> bool:
    names = ("features", "num_frames", "targets", "num_targets", "transcripts.tokens")
    return all(torch.equal(attrgetter(name)(one), attrgetter(name)(other)) for name in names)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_gets_the_batches_that_follow(packed: Path, num_workers: int) -> None:
    torch.set_num_threads(1)  # as a forked worker has: sums depend on how they are divided
    whole = [batch for w in range(2) for batch in batches(sharded(packed), OPTIONS, w, share=(1, 2))]
    data = sharded(packed)
    first = len(list(batches(data, OPTIONS, 0, share=(1, 2))))
    resumed = list(batches(sharded(packed), OPTIONS, 1, 2, share=(1, 2), num_workers=num_workers))
    assert len(resumed) > 2
    assert all(same(a, b) for a, b in zip(whole[first + 2 :], resumed, strict=True))


@pytest.mark.slow
def test_shards_train_like_any_corpus_and_resume(packed: Path, tmp_path: Path) -> None:
    whole = train(
        made.make_model(), sharded(packed), made.options(12), tmp_path / "a", report=lambda line: None
    )
    for stop in (4, 12):
        parts = train(
            made.make_model(),
            sharded(packed),
            made.options(12),
            tmp_path / "b",
            report=lambda line: None,
            stop_after=stop,
        )
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


def test_shards_are_random_access_too(corpus: Path, packed: Path) -> None:
    examples = sharded(packed).examples
    options = ExampleOptions(rows_per_utterance=2, max_tokens=31)
    one, other = (
        Corpus([(open_corpus(path), 1.0)], examples, options).plan(OPTIONS, 0) for path in (corpus, packed)
    )
    assert sum(map(len, one)) == sum(map(len, other)) == NUM_UTTERANCES


def test_two_corpora_are_mixed(packed: Path) -> None:
    entries = sharded(packed, packed)._order(0).tolist()
    assert Counter(part for part, _ in entries) == {0: 13, 1: 13}


def test_temperature_evens_out_corpora() -> None:
    assert tempered([1, 2], [100, 1], 1.0) == [1, 2]
    hours = np.array([100.0, 1.0])
    drawn = np.array(tempered([1, 1], hours, 2.0)) * hours
    assert drawn.sum() == pytest.approx(101)
    assert drawn[0] / drawn[1] == pytest.approx(10)  # 100^(1/2) : 1


# Bad input.


def copied(packed: Path, to: Path) -> Path:
    return Path(shutil.copytree(packed, to))


def read_all(path: Path | str) -> int:
    data = sharded(path)
    return sum(len(list(batches(data, OPTIONS, window))) for window in range(data.windows))


def test_a_shard_that_is_cut_off(packed: Path, tmp_path: Path) -> None:
    path = copied(packed, tmp_path / "cut")
    shard = path / recording_name(2)
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(SprachbundError, match=r"recording\.000002\.tar is cut off: .* bytes of .*; copy the"):
        read_all(path)
    with pytest.raises(SprachbundError, match=r"recording\.000002\.tar is cut off"):
        open_corpus(path).check()


def test_a_shard_with_other_bytes(packed: Path, tmp_path: Path) -> None:
    path = copied(packed, tmp_path / "other")
    shard = path / recording_name(1)
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(SprachbundError, match=r"recording\.000001\.tar is damaged"):
        read_all(path)


def test_a_broken_index(packed: Path, tmp_path: Path) -> None:
    path = copied(packed, tmp_path / "index")
    (path / INDEX_FILE).write_text("{")
    with pytest.raises(SprachbundError, match=r"index\.json"):
        Shards(path)
    with pytest.raises(SprachbundError, match="no share"):
        open_corpus(packed, {"en": 0.5})


def test_fewer_shards_than_processes(packed: Path) -> None:
    with pytest.raises(SprachbundError, match="window_shards is 5, and 8 processes"):
        sharded(packed).enter(0, (0, 8))
    with pytest.raises(SprachbundError, match=r"13, and 20 processes .* pack smaller shards"):
        sharded(packed, window=50).enter(0, (0, 20))


def _train_on_own(rank: int, count: int, *, paths: list[Path], out: Path) -> None:
    train(made.make_model(), sharded(paths[rank]), made.options(2), out, report=lambda line: None)


@pytest.mark.slow
def test_two_processes_train_on_shards(packed: Path, tmp_path: Path) -> None:
    work = partial(_train_on_own, paths=[packed, packed], out=tmp_path / "run")
    codes = fork_ranks([2], work, tmp_path)
    assert set(codes.values()) == {0}, (tmp_path / "2" / "failure.0.txt").read_text()
    assert (tmp_path / "run" / "resume.pt").exists()


def test_ranks_with_different_indices(corpus: Path, packed: Path, tmp_path: Path) -> None:
    other = pack(corpus, tmp_path / "other", shard_utterances=SHARD, seed=1).directory
    codes = fork_ranks([2], partial(_train_on_own, paths=[packed, other], out=tmp_path / "run"), tmp_path)
    assert set(codes.values()) == {1}
    assert "the training data" in (tmp_path / "2" / "failure.0.txt").read_text()


# Object stores.


def uploaded(packed: Path, url: str, **options: Any) -> str:
    import fsspec

    fs, root = fsspec.core.url_to_fs(url, **options)
    for path in packed.rglob("*"):
        if path.is_file():
            fs.makedirs(f"{root}/{path.parent.relative_to(packed)}", exist_ok=True)
            fs.pipe_file(f"{root}/{path.relative_to(packed).as_posix()}", path.read_bytes())
    return url


def test_shards_in_memory(packed: Path) -> None:
    pytest.importorskip("fsspec")
    url = uploaded(packed, "memory://bucket/corpus")
    for path in (url, Path(url)):  # pathlib makes one slash of two
        there = open_corpus(path)
        assert isinstance(there, Shards)
        assert by_id(there) == by_id(Shards(packed))
    assert there.content_hash() == Shards(packed).content_hash()


def copies(corpus: Shards) -> int:
    """Shards of a URL that are on this machine's disk."""
    folder = corpus._files._folder
    return 0 if folder is None else len(list(folder.rglob("*.tar")))


def test_shards_of_a_url_are_deleted_after_use(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    monkeypatch.setattr("sprachbund.data.shards._MOST_OPEN", 2)
    corpus = Shards(uploaded(packed, "memory://bucket/deleted"))
    held: list[int] = []
    assert corpus.check(lambda done, total: held.append(copies(corpus))) == corpus.num_shards
    assert max(held) == 0
    wanted = [samples.tobytes() for samples in map(Shards(packed).samples, range(len(corpus)))]
    assert [corpus.samples(index).tobytes() for index in range(len(corpus))] == wanted
    assert copies(corpus) == 2
    first, last = 0, len(corpus) - 1
    for _ in range(3):  # read at random: what is fetched again stays
        for index in (first, len(corpus) // 2, last):
            assert corpus.samples(index).tobytes() == wanted[index]
    assert copies(corpus) >= 3
    Shards(packed).check()
    assert (packed / recording_name(0)).exists()


def test_held_shards_are_not_deleted(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    monkeypatch.setattr("sprachbund.data.shards._MOST_OPEN", 2)
    corpus = Shards(uploaded(packed, "memory://bucket/held"))
    corpus.hold([0, 1])
    for index in range(len(corpus)):
        corpus.samples(index)
    corpus.check()
    folder = corpus._files._folder
    assert folder is not None
    assert [(folder / recording_name(number)).exists() for number in range(3)] == [True, True, False]


@pytest.mark.parametrize("scheme", ["file://", "file:"])
def test_shards_of_a_file_url(packed: Path, scheme: str) -> None:
    pytest.importorskip("fsspec")
    assert Shards(f"{scheme}{packed}").samples(0).tobytes() == Shards(packed).samples(0).tobytes()


class Flaky(BaseHTTPRequestHandler):
    """Serves a folder with ranges; every tenth request fails, in one of three ways."""

    folder = Path()
    count = 0
    cut_off: str | None = None

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        type(self).count += 1
        path = self.folder / self.path.lstrip("/")
        if type(self).count % 10 == 0:
            if type(self).count % 20 == 0:
                return self.send_error(503)
            self.connection.close()
            return None
        if not path.is_file():
            return self.send_error(404)
        content = path.read_bytes()
        if self.cut_off and path.name == self.cut_off:
            content = content[:-3000]
        size = len(content)
        begin, end = 0, size
        if said := self.headers.get("Range"):
            first, _, last = said.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(size, int(last) + 1) if last else size
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(max(0, end - begin)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[begin:end])
        return None

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def flaky(packed: Path) -> Iterator[tuple[type[Flaky], str]]:
    pytest.importorskip("aiohttp")
    handler = type("Handler", (Flaky,), {"folder": packed, "count": 0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_store_that_fails_every_tenth_request(
    packed: Path, flaky: tuple[type[Flaky], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 4096)
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.001)
    handler, url = flaky
    here, there = sharded(packed), sharded(url)
    for window in range(2):
        ours, theirs = (list(batches(data, OPTIONS, window, num_workers=1)) for data in (here, there))
        assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    assert handler.count > 30  # so that some have failed
    kept = {path.name for path in there._shards[0]._files._own_folder().rglob("*.tar")}
    assert len(kept) < 13  # those of the first window are gone


def test_a_store_with_a_shard_that_is_cut_off(
    flaky: tuple[type[Flaky], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.001)
    handler, url = flaky
    handler.cut_off = "recording.000003.tar"
    with pytest.raises(SprachbundError, match=r"recording\.000003\.tar is cut off"):
        read_all(url)


def test_a_store_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.001)
    with pytest.raises(SprachbundError, match="cannot be fetched, 8 times in a row"):
        Shards("http://127.0.0.1:9/corpus")
    with pytest.raises(SprachbundError, match=r"cannot be opened .*sprachbund\[cloud\]"):
        Shards("nosuchstore://bucket/corpus")


@pytest.mark.slow
def test_shards_in_s3(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        for name, value in {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem().mkdir("bucket")
        url = uploaded(packed, "s3://bucket/corpus")
        assert read_all(url) == read_all(packed)
        assert by_id(open_corpus(Path(url))) == by_id(Shards(packed))
    finally:
        server.stop()


@pytest.mark.slow
def test_shards_in_gcs(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gcsfs = pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    try:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        gcsfs.GCSFileSystem.clear_instance_cache()  # which knows nothing of the variable
        url = uploaded(packed, "gs://bucket/corpus")
        assert read_all(url) == read_all(packed)
        assert by_id(open_corpus(Path(url))) == by_id(Shards(packed))
    finally:
        server.stop()
        gcsfs.GCSFileSystem.clear_instance_cache()
