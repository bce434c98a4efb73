"""The texts that the tables of a comparison are made of, in one file."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.lines import DecodingEvidence, Line
from sprachbund.util.files import atomic_path

TEXTS_FILE = "texts.jsonl.gz"


def write_texts(path: Path, runs: Iterable[tuple[str, int, Iterable[Line]]]) -> dict[str, int]:
    """Write the references by utterance, then what every model wrote for these; the same texts give the same bytes.

    Returns the number of references and of different ones, for the manifest: equal ones are drawn together.

    Utterances with texts in several languages have one entry for each, "ID LANGUAGE"; those of several corpora, whose
    ids may be equal, "CORPUS ID".

    Args:
        path: path of the file, one JSON object a line.
        runs: name of the arm, seed, and its lines; those of the first one say which texts are written.
    """
    with (
        atomic_path(path) as partial,
        open(partial, "wb") as file,
        gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed,
    ):
        references: dict[str, str] = {}
        names: Sequence[str] = ()  # of the fields that tell the lines apart
        for arm, seed, run in runs:
            lines = list(run)
            if not references:
                names = _names(lines)
                references = {_key(line, names): line.reference for line in lines}
                packed.write(_json_line({"references": references}))
            texts = {_key(line, names): line.hypothesis for line in lines}
            written = {key: text for key, text in texts.items() if key in references}
            packed.write(_json_line({"arm": arm, "seed": seed, "hypotheses": written}))
    return {"references": len(references), "different references": len(set(references.values()))}


@dataclass(frozen=True, kw_only=True)
class WrittenTexts:
    """The content of a file that `write_texts` wrote.

    Attributes:
        path: path of the file.
        references: key of a line to its reference.
        runs: arm to the texts of each of its runs, by the keys of their lines.
    """

    path: Path
    references: Mapping[str, str]
    runs: Mapping[str, Sequence[Mapping[str, str]]]

    @classmethod
    def read(cls, path: Path) -> "WrittenTexts":
        """Read a file.

        Raises:
            SprachbundError: there is none, or it is something else.
        """
        runs: dict[str, list[Mapping[str, str]]] = {}
        try:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                references = json.loads(next(file))["references"]
                for values in map(json.loads, file):
                    runs.setdefault(values["arm"], []).append(values["hypotheses"])
        except OSError as error:
            raise SprachbundError(
                f"{path}: {error.strerror or error}; give the {TEXTS_FILE} of a run"
            ) from error
        except (EOFError, StopIteration, ValueError, KeyError, TypeError, zlib.error) as error:
            raise SprachbundError(f"{path} is no {TEXTS_FILE} of a run: {error!r}") from error
        return cls(path=path, references=references, runs=runs)

    def lines(self, arm: str, number: int, like: Iterable[Line]) -> Iterator[Line]:
        """The lines of a run, all that is not its text as in another run on the same data.

        Args:
            arm: name of the arm.
            number: number of its run, from 0.
            like: lines of the other run; those that the file does not have are left out.

        Raises:
            SprachbundError: the other run has other data.
        """
        others = list(like)
        names, texts = _names(others), self.runs[arm][number]
        chosen = {key: line for line in others if (key := _key(line, names)) in texts}
        for key in texts:
            if key not in chosen or chosen[key].reference != self.references[key]:
                there = f"says {chosen[key].reference!r}" if key in chosen else "is not there"
                raise SprachbundError(
                    f"{self.path} has {self.references[key]!r} as the reference of {key!r}, which {there} in the "
                    "data; make the data with the command that its run names"
                )
            yield replace(chosen[key], hypothesis=texts[key], evidence=DecodingEvidence())


_NAMES = "corpus", "id", "target"


def _names(lines: Sequence[Line]) -> Sequence[str]:
    """Names of the fields that tell lines apart."""
    return [name for name in _NAMES if name == "id" or len(set(map(attrgetter(name), lines))) > 1]


def _key(line: Line, names: Iterable[str]) -> str:
    return " ".join(getattr(line, name) for name in names)


def _json_line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"
