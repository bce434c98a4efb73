"""A Hugging Face hub on the loopback interface: the routes that downloading a model needs, and broken connections."""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import urlsplit

_PIECE = 2**16
TOKEN = "hf_test"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What is served, and what was asked for.

    Attributes:
        repositories: name to the directory with its files.
        break_after: bytes of a file after which the connection ends; None for never.
        stall_after: bytes of a file after which nothing more comes until `stalled` is cleared; None for never.
        stalled: set once it is so.
        asked: method, path and range of every request, in order.
        sent: bytes of files that were sent, by name.
        received: files of commits, by repository and name.
        token: of whoever asks; writing needs `TOKEN`.
    """

    repositories: dict[str, Path]
    break_after: int | None = None
    stall_after: int | None = None
    stalled: Event = field(default_factory=Event)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    received: dict[str, bytes] = field(default_factory=dict)
    address: str = ""
    token: str = ""

    def environment(self, home: Path) -> dict[str, str]:
        """Variables with which huggingface_hub asks this hub, and keeps what it fetches under `home`."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": self.token,
            "no_proxy": "127.0.0.1",
        }


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve a hub until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_POST(self) -> None:
            """Creating a repository, and a commit whose files come with it."""
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = urlsplit(self.path).path
            hub.asked.append((self.command, path, ""))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.send_response(401)
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif path == "/api/repos/create":
                wanted = json.loads(content)
                self._json({"url": f"{hub.address}/{wanted['organization']}/{wanted['name']}"})
            elif path.endswith("/preupload/main"):
                names = [file["path"] for file in json.loads(content)["files"]]
                regular = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
                self._json({"files": [{"path": name, **regular} for name in names]})
            elif result := re.fullmatch(r"/api/models/(.+)/commit/main", path):
                for line in map(json.loads, content.splitlines()):
                    if line["key"] == "file":
                        value = line["value"]
                        hub.received[f"{result[1]}/{value['path']}"] = base64.b64decode(value["content"])
                self._json(
                    {
                        "success": True,
                        "commitOid": COMMIT,
                        "commitUrl": f"{hub.address}/{result[1]}/commit/{COMMIT}",
                    }
                )
            else:
                self._json({})

        def _answer(self, *, body: bool) -> None:
            path = urlsplit(self.path).path
            hub.asked.append((self.command, path, self.headers.get("Range", "")))
            for name, directory in hub.repositories.items():
                if re.fullmatch(rf"/api/models/{name}(/revision/[^/]+)?", path):
                    files = [_sibling(file, directory) for file in _files(directory)]
                    return self._json({"id": name, "sha": COMMIT, "siblings": files})
                if path.startswith(f"/api/models/{name}/tree/"):
                    return self._json([_entry(file, directory) for file in _files(directory)])
                if result := re.fullmatch(rf"/{name}/resolve/[^/]+/(.+)", path):
                    return self._file(directory / result[1], body=body)
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _json(self, value: object) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _file(self, path: Path, *, body: bool) -> None:
            content = path.read_bytes()
            result = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start = int(result[1]) if result else 0
            self.send_response(206 if result else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{_etag(path)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if result:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if not body:
                return
            if hub.break_after is not None and len(content) - start > hub.break_after:
                self._send(path, content[start : start + hub.break_after])
                self.close_connection = True
                self.connection.close()
                return
            if hub.stall_after is not None and len(content) - start > hub.stall_after:
                self._send(path, content[start : start + hub.stall_after])
                hub.stalled.set()
                self.connection.settimeout(60)
                self.close_connection = True
                with suppress(OSError):
                    self.connection.recv(1)  # until the client is gone
                return
            self._send(path, content[start:])

        def _send(self, path: Path, content: bytes) -> None:
            for begin in range(0, len(content), _PIECE):
                self.wfile.write(content[begin : begin + _PIECE])
                hub.sent[path.name] += len(content[begin : begin + _PIECE])

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *args: None  # type: ignore[method-assign]
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _is_large(path: Path) -> bool:
    """Whether the hub keeps a file in its large file storage (Git LFS), under its SHA-256."""
    return path.suffix == ".safetensors"


def _etag(path: Path) -> str:
    return hashlib.new("sha256" if _is_large(path) else "sha1", path.read_bytes()).hexdigest()


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _sibling(path: Path, directory: Path) -> dict[str, object]:
    name = path.relative_to(directory).as_posix()
    lfs = {"sha256": _etag(path), "size": path.stat().st_size, "pointerSize": 134}
    return {"rfilename": name, "size": path.stat().st_size} | ({"lfs": lfs} if _is_large(path) else {})


def _entry(path: Path, directory: Path) -> dict[str, object]:
    name = path.relative_to(directory).as_posix()
    lfs = {"oid": _etag(path), "size": path.stat().st_size, "pointerSize": 134}
    entry = {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0" * 40}
    return entry | ({"lfs": lfs} if _is_large(path) else {})
