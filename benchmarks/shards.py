"""Corpora of tar shards: what a start costs with a million utterances, and how fast they come from an object store.

The index has a million utterances in a thousand shards. All shards are the same file by hard links, so that those that
are read are real; sound is noise of the length of read speech, in FLAC. A process is started for each row.

Stores are servers on the same machine: moto's S3, and a small web server that answers every request 50 ms late, as a
distant one does. They share the cores with the reader, which real stores do not. Rounds are in turn.

Run: pip install 'sprachbund[cloud]' 'moto[server]'; python -m benchmarks.shards
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmarks.rows import keep

from sprachbund.data.batching import BatchingOptions
from sprachbund.data.loading import ExampleOptions, PieceExamples, ShardedCorpus, batches
from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.data.shards import Shards, cuts_name, open_corpus, pack, recording_name, write_index
from sprachbund.text.tokenizer import Tokenizer

HERE = Path(__file__).parent
RATE, LATENCY_S = 16_000, 0.05
OPTIONS = BatchingOptions(batch_s=1280.0, max_utterances=512)
"""Of eight processes together, 160 s each."""
RANKS = 8


def mib() -> float:
    """Memory that this process holds, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def make_corpus(folder: Path, utterances: int, shard: int) -> Path:
    """A corpus of noise in shards."""
    rng = np.random.default_rng(0)
    with ManifestWriter(folder / "corpus", shard_size=shard) as writer:
        for i in range(utterances):
            seconds = float(np.clip(rng.lognormal(1.6, 0.45), 1.5, 15))  # median 5 s, as in Common Voice
            noise = rng.standard_normal(int(seconds * RATE)).astype(np.float32)
            writer.add(
                0.02 * np.convolve(noise, np.hanning(9), "same").astype(np.float32),
                text="a b c d e",
                language="en",
                speaker="",
                utterance_id=f"{i}",
            )
    return pack(folder / "corpus", folder / "packed", shard_utterances=shard, workers=2).directory


def make_index(folder: Path, packed: Path, shards: int) -> Path:
    """So many shards, all the same file."""
    one, out = Shards(packed), folder / "million"
    (out / "shards").mkdir(parents=True)
    for number in range(shards):
        for name in (cuts_name, recording_name):
            os.link(packed / name(0), out / name(number))
    lengths = np.tile(np.array(one.shard(0).durations_s), shards)
    utterances = np.zeros(len(lengths), [("duration_s", "<f4"), ("language", "<u2")])
    utterances["duration_s"] = lengths
    write_index(out, "flac", one.index.languages, utterances, {}, [one.index.shards[0].model_dump()] * shards)
    return out


def make_lines(folder: Path, packed: Path, count: int) -> Path:
    """A corpus that is read at random, with so many utterances and no sound behind the header: a file with holes."""
    source = Manifest(packed.parent / "corpus")
    out = folder / "lines"
    writer = ManifestWriter(out, shard_size=10**9)
    for i in range(count):
        u = source[i % len(source)]
        writer.add(np.zeros(160, np.float32), text=u.text, language="en", speaker="", utterance_id=f"{i}")
    writer.flush()
    return out


def sharded(path: str, window: int) -> ShardedCorpus:
    """A corpus as training has it."""
    tokenizer = Tokenizer.train(["a b c d e f g"] * 50, ("en",), 20)
    examples = PieceExamples(tokenizer, tokenizer, ("en",))
    return ShardedCorpus([(Shards(path), 1.0)], examples, ExampleOptions(rows_per_utterance=1), window)


def measure_start(path: str, first_window: int, window: int) -> dict[str, float]:
    """Time to the first batch of one process of eight, and its memory."""
    corpus = sharded(path, window)  # modules are loaded, and files are in the page cache
    list(zip(range(2), batches(corpus, OPTIONS, 0, share=(0, RANKS)), strict=False))
    del corpus
    before, began = mib(), time.perf_counter()
    corpus = sharded(path, window)
    opened_s = time.perf_counter() - began
    stream = batches(corpus, OPTIONS, first_window, 3, share=(0, RANKS))
    next(iter(stream))
    return {
        "opened_s": round(opened_s, 3),
        "first_batch_s": round(time.perf_counter() - began, 2),
        "memory_mib": round(mib() - before, 1),
        "shards_held": 2 * window // RANKS,
    }


def measure_lines(path: str) -> dict[str, float]:
    """Time to open a corpus that is parsed whole, and its memory."""
    before, began = mib(), time.perf_counter()
    manifest = open_corpus(path)
    opened_s = time.perf_counter() - began
    return {
        "opened_s": round(opened_s, 2),
        "memory_mib": round(mib() - before, 1),
        "utterances": len(manifest),
    }


def measure_speed(path: str, windows: int, workers: int) -> dict[str, float]:
    """Utterances a second of one process that makes the batches of some windows, after the first one."""
    corpus = sharded(path, 2)
    options = BatchingOptions(batch_s=160.0)
    utterances = began = 0.0
    for window in range(windows):
        for batch in batches(corpus, options, window, num_workers=workers):
            utterances += batch.num_utterances
        if window == 0:  # at whose start nothing was fetched yet
            utterances, began = 0.0, time.perf_counter()
    return {"utterances_per_s": utterances / (time.perf_counter() - began)}


class Distant(BaseHTTPRequestHandler):
    """Serves the folder with ranges, late."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        time.sleep(LATENCY_S)
        path = Path(os.environ["SERVED"], self.path.lstrip("/"))
        if not path.is_file():
            return self.send_error(404)
        size = path.stat().st_size
        begin, end = 0, size
        if said := self.headers.get("Range"):
            first, _, last = said.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(size, int(last) + 1)
        self.send_response(206 if said else 200)
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        with path.open("rb") as file:
            file.seek(begin)
            self.wfile.write(file.read(end - begin))
        return None

    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve(kind: str) -> None:
    """Serve until the end of stdin, after a line with the port."""
    if kind == "s3":
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(port=0, verbose=False)
        server.start()
        print(server.get_host_and_port()[1], flush=True)
        sys.stdin.read()
        server.stop()
    else:
        web = ThreadingHTTPServer(("127.0.0.1", 0), Distant)
        threading.Thread(target=web.serve_forever, daemon=True).start()
        print(web.server_port, flush=True)
        sys.stdin.read()


def apart(*arguments: object, **environment: str) -> dict[str, float]:
    """What a process of this script prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.shards", *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def started(kind: str, folder: Path) -> tuple[subprocess.Popen[str], int]:
    """A server and its port."""
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.shards", "serve", kind],
        env={**os.environ, "SERVED": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    return server, int(server.stdout.readline())


def upload(packed: Path, port: int) -> dict[str, str]:
    """Copy the shards into a bucket; the environment that reads it."""
    environment = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    os.environ.update(environment)
    import s3fs

    store = s3fs.S3FileSystem()
    store.mkdir("bucket")
    for path in packed.rglob("*"):
        if path.is_file():
            store.put_file(str(path), f"bucket/{path.relative_to(packed).as_posix()}")
    return environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "shards.json")
    parser.add_argument("--shards", type=int, default=1000, help="of the index")
    parser.add_argument("--shard-utterances", type=int, default=1000)
    parser.add_argument("--lines", type=int, default=100_000, help="of the corpus that is parsed whole")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for the data; a temporary one if not given")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    million = make_index(
        folder, make_corpus(folder / "one", args.shard_utterances, args.shard_utterances), args.shards
    )
    count = args.shards * args.shard_utterances
    last = args.shards // 16 - 1
    starts = {
        "shards, from the beginning": apart("start", million, 0, 16),
        "shards, resumed in the last window": apart("start", million, last, 16),
    }
    lines = apart("lines", make_lines(folder, folder / "one" / "packed", args.lines))
    several = make_corpus(folder / "several", 1600, 200)
    rates: dict[str, list[float]] = {"local disk": [], "S3": [], "web server, 50 ms late": []}
    s3, port = started("s3", several)
    environment = upload(several, port)
    web, web_port = started("web", several)
    urls = {
        "local disk": str(several),
        "S3": "s3://bucket",
        "web server, 50 ms late": f"http://127.0.0.1:{web_port}",
    }
    try:
        for _ in range(args.rounds):
            for name, url in urls.items():
                rates[name].append(apart("speed", url, 4, 1, **environment)["utterances_per_s"])
    finally:
        for server in (s3, web):
            assert server.stdin is not None
            server.stdin.close()
            server.wait()
    rows = [
        {"what": name, "utterances": count, "opened_s": one["opened_s"], "first_batch_s": one["first_batch_s"],
         "memory_MiB": one["memory_mib"]}
        for name, one in starts.items()
    ]  # fmt: skip
    rows.append(
        {"what": "lines, parsed whole", "utterances": int(lines["utterances"]), "opened_s": lines["opened_s"],
         "first_batch_s": "", "memory_MiB": lines["memory_mib"]}
    )  # fmt: skip
    keep(args.out, {"ranks": RANKS, "rows": rows}, "start")
    disk = rates["local disk"]
    speeds = [
        {
            "shards_from": name,
            "utterances/s": round(median(values)),
            "least": round(min(values)),
            "most": round(max(values)),
            "of_local_disk": round(median(a / b for a, b in zip(values, disk, strict=True)), 2),
        }
        for name, values in rates.items()
    ]
    keep(args.out.with_name("shards_speed.json"), {"rows": speeds}, "speed")
    if args.folder is None:
        shutil.rmtree(folder)


WORK = {
    "start": lambda path, first, window: measure_start(path, int(first), int(window)),
    "lines": measure_lines,
    "speed": lambda path, windows, workers: measure_speed(path, int(windows), int(workers)),
}

if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] == "serve":
        serve(sys.argv[2])
    elif len(sys.argv) > 1 and sys.argv[1] in WORK:
        print(json.dumps(WORK[sys.argv[1]](*sys.argv[2:])))
    else:
        main()
