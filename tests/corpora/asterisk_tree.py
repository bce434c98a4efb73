"""A tiny tree laid out like Debian's sound packages; every recording is a tone of its own pitch."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np

RATE = 16000
ROOT = Path(__file__).parents[2]
REAL_SOURCES = (ROOT / "corpora" / "asterisk-deb", Path("/"))


def real_source() -> Path | None:
    """The real packages: .deb files in the corpora folder, or installed on this machine."""
    has_debs = any(REAL_SOURCES[0].glob("asterisk-core-sounds-en_*.deb"))
    installed = Path("/usr/share/doc/asterisk-core-sounds-en").is_dir()
    return REAL_SOURCES[0] if has_debs else REAL_SOURCES[1] if installed else None


def tone(frequency_hz: float, duration_s: float = 0.3, silence_s: float = 0.1) -> np.ndarray:
    """A tone between two stretches of silence, int16."""
    time = np.arange(int(duration_s * RATE)) / RATE
    pad = np.zeros(int(silence_s * RATE))
    return (np.concatenate([pad, 0.3 * np.sin(2 * np.pi * frequency_hz * time), pad]) * 32767).astype(
        np.int16
    )


def write_g722(path: Path, samples: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=RATE)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def write_tree(root: Path, folders: Mapping[str, str], texts: Mapping[str, Mapping[str, str]]) -> Path:
    """Write transcripts (language to name to text) and one tone per name under ``folders``."""
    for language, by_name in texts.items():
        doc = root / f"usr/share/doc/asterisk-core-sounds-{language}/core-sounds-{language}.txt.gz"
        doc.parent.mkdir(parents=True)
        lines = ["; Core Asterisk Sounds", "", *(f"{name}: {text}" for name, text in by_name.items())]
        doc.write_bytes(gzip.compress("\n".join(lines).encode()))
        for index, name in enumerate(by_name):
            folder = root / "usr/share/asterisk/sounds" / folders[language]
            write_g722(folder / f"{name}.g722", tone(300 + 40 * index))
    return root


def write_deb(path: Path, tree: Path) -> None:
    """A Debian package of ``tree``: an ar archive of three members."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        archive.add(tree, ".", recursive=False)  # as dpkg-deb does
        archive.add(tree / "usr", "./usr")
    write_ar(path, {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": data.getvalue()})


def write_ar(path: Path, members: dict[str, bytes]) -> None:
    """An ar archive of members by their names."""
    blob = b"!<arch>\n"
    for name, content in members.items():
        blob += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        blob += content + b"\n" * (len(content) % 2)
    path.write_bytes(blob)
