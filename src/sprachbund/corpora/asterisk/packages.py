"""The source of the recorded prompts, Debian's asterisk sound packages: finding, fetching and unpacking them.

Five speakers (one per language) have transcripts. Three further speakers have none; they say the same prompts
under the same names and are kept for testing only, so that a score on an unheard speaker can be given.
"""

from __future__ import annotations

import io
import lzma
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from sprachbund.errors import SprachbundError

SOUNDS = Path("usr/share/asterisk/sounds")
DOCS = Path("usr/share/doc")


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """A recorded speaker: packages that hold the voice, folder of its files, and licence.

    ``held_out`` speakers are never trained on; their wording is taken from the core speaker of the language.
    """

    tag: str
    language: str
    packages: tuple[str, ...]
    folder: str
    suffix: str
    licence: str
    attribution: str
    held_out: bool = False


def _core(language: str, name: str, folder: str, licence: str, attribution: str) -> Speaker:
    base = f"asterisk-core-sounds-{language}"
    return Speaker(
        tag=f"asterisk-{language}-{name}",
        language=language,
        packages=(base, f"{base}-g722"),
        folder=folder,
        suffix=".g722",
        licence=licence,
        attribution=attribution,
    )


SPEAKERS: tuple[Speaker, ...] = (
    _core("en", "allison", "en_US_f_Allison", "CC-BY-SA-3.0", "Allison Smith; Digium, Inc."),
    _core("es", "allison", "es_MX_f_Allison", "CC-BY-SA-3.0", "Allison Smith; Digium, Inc."),
    _core(
        "fr",
        "june",
        "fr_CA_f_June",
        "CC-BY-SA-3.0",
        "June Wallack; Digium, Inc.; Unlimitel; BGM Informatique",
    ),
    _core("it", "carlo", "it_IT_m_Carlo", "CC-BY-SA-3.0", "Carlo Flora, http://www.segreterietelefoniche.it"),
    _core("ru", "ivrvoice", "ru_RU_f_IvrvoiceRU", "CC-BY-3.0", "Maxim Topal, http://www.ivrvoice.ru"),
    Speaker(
        tag="asterisk-es-avatar",
        language="es",
        packages=("asterisk-prompt-es-co",),
        folder="es",
        suffix=".gsm",
        licence="GPL-2.0",
        attribution="July E. Jiménez; Copyright 2006 Avatar Ltda., http://www.avatar.com.co/",
        held_out=True,
    ),
    Speaker(
        tag="asterisk-fr-armelle",
        language="fr",
        packages=("asterisk-prompt-fr-armelle",),
        folder="fr",
        suffix=".gsm",
        licence="LicenseRef-Indigen (BSD-style, two clauses)",
        attribution="Armelle Desjardins; Copyright 2006 Michel Gutierrez",
        held_out=True,
    ),
    Speaker(
        tag="asterisk-it-menardi",
        language="it",
        packages=("asterisk-prompt-it-menardi-wav",),
        folder="it_IT_f_Menardi",
        suffix=".wav",
        licence="CC-BY-SA-3.0-IT",
        attribution="Marco Menardi and Paola Dal Zot, http://www.voip.ammdomus.it",
        held_out=True,
    ),
)
LANGUAGES = tuple(speaker.language for speaker in SPEAKERS if not speaker.held_out)


def all_packages() -> tuple[str, ...]:
    """The Debian package names of all speakers."""
    return tuple(name for speaker in SPEAKERS for name in speaker.packages)


def find_tree(source: Path | None, cache: Path) -> Path:
    """Return the root of an unpacked package tree (the folder that holds ``usr``).

    ``source`` is an unpacked tree, a folder of ``.deb`` files, or None: then ``apt-get download`` fetches the
    packages into ``cache``. Raises SprachbundError when nothing usable is there.
    """
    if source is None:
        return unpack(download(cache / "deb"), cache / "tree")
    if not source.is_dir():
        raise SprachbundError(f"{source} is not a folder; give a folder of .deb files or an unpacked tree")
    if (source / SOUNDS).is_dir():
        return source
    if any(source.glob("asterisk-*.deb")):
        return unpack(source, cache / "tree")
    raise SprachbundError(
        f"{source} holds neither asterisk-*.deb files nor {SOUNDS}; leave it out to use apt-get"
    )


def download(folder: Path) -> Path:
    """Fetch the packages that ``folder`` lacks with apt-get. Raises SprachbundError without apt-get."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in all_packages() if not any(folder.glob(f"{name}_*.deb"))]
    if not missing:
        return folder
    if shutil.which("apt-get") is None:
        raise SprachbundError(
            f"no apt-get on this machine to fetch {missing[0]} and others; download the .deb files from "
            "https://packages.debian.org and give their folder as the source"
        )
    result = subprocess.run(["apt-get", "download", *missing], cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise SprachbundError(
            f"apt-get download of {missing[0]} and others failed: {reason}; try `apt-get update`"
        )
    return folder


def unpack(debs: Path, tree: Path) -> Path:
    """Unpack every asterisk ``.deb`` of ``debs`` under ``tree`` (once: a marker file remembers it)."""
    for deb in sorted(debs.glob("asterisk-*.deb")):
        marker = tree / ".unpacked" / deb.name
        if marker.exists():
            continue
        try:
            _unpack_deb(deb, tree)
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
        except (OSError, EOFError, ValueError, KeyError, lzma.LZMAError, tarfile.TarError) as error:
            # A KeyError is of a link to a file that the package does not hold.
            reason = str(error) or type(error).__name__
            raise SprachbundError(
                f"cannot unpack {deb.name} to {tree}: {reason}; download it again or name another cache"
            ) from error
    return tree


def _unpack_deb(deb: Path, tree: Path) -> None:
    for name, data in _ar_members(deb):
        if not name.startswith("data.tar"):
            continue
        if name.endswith(".xz"):
            data = lzma.decompress(data)
        elif name.endswith(".zst"):
            raise SprachbundError(
                f"{deb}: zstd packages are not read; unpack it with `dpkg -x` and give the folder"
            )
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            _extract(archive, tree)
        return
    raise SprachbundError(f"{deb} holds no data archive; download the package again")


def _extract(archive: tarfile.TarFile, tree: Path) -> None:
    """Write folders, files and links of an archive under `tree`, and nothing outside of it.

    The filter "data" of tarfile does that, too, but Python 3.11 lacks it before 3.11.4, and Debian 12 has 3.11.2.

    Raises:
        ValueError: a member is or leads outside of `tree`, or is of another kind.
    """
    root = tree.resolve()
    for member in archive:
        path = root / member.name
        # Behind links of the archive, but of a link not what it leads to.
        written = path.parent.resolve() / path.name
        leads_to = path.parent / member.linkname if member.issym() else path
        if not (written.is_relative_to(root) and leads_to.resolve().is_relative_to(root)):
            raise ValueError(f"{member.name} is outside of the folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        if member.isdir():
            path.mkdir(exist_ok=True)
        elif member.issym():
            path.unlink(missing_ok=True)
            path.symlink_to(member.linkname)
        elif (content := archive.extractfile(member)) is not None:  # of a hard link, that of its file
            path.write_bytes(content.read())
        else:
            raise ValueError(f"{member.name} is neither a folder nor a file nor a link")


def _ar_members(deb: Path) -> list[tuple[str, bytes]]:
    """The members of a Debian package: an ``ar`` archive of 60-byte headers and even-padded contents."""
    blob = deb.read_bytes()
    if not blob.startswith(b"!<arch>\n"):
        raise SprachbundError(f"{deb} is not a Debian package; download it again")
    members: list[tuple[str, bytes]] = []
    position = 8
    while position + 60 <= len(blob):
        header = blob[position : position + 60]
        size = int(header[48:58])
        members.append((header[:16].decode().strip().rstrip("/"), blob[position + 60 : position + 60 + size]))
        position += 60 + size + size % 2
    return members
