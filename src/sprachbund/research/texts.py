"""The texts that the tables of a comparison are made of, in one file."""

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from sprachbund.evaluation.compare import RunFile
from sprachbund.evaluation.lines import Line
from sprachbund.util.files import atomic_path

TEXTS_FILE = "texts.jsonl.gz"


def write_texts(path: Path, runs: Iterable[tuple[str, int, RunFile]]) -> dict[str, int]:
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
                names = [
                    name for name in _NAMES if name == "id" or len(set(map(attrgetter(name), lines))) > 1
                ]
                references = {_key(line, names): line.reference for line in lines}
                packed.write(_json_line({"references": references}))
            texts = {_key(line, names): line.hypothesis for line in lines}
            written = {key: text for key, text in texts.items() if key in references}
            packed.write(_json_line({"arm": arm, "seed": seed, "hypotheses": written}))
    return {"references": len(references), "different references": len(set(references.values()))}


_NAMES = "corpus", "id", "target"


def _key(line: Line, names: Iterable[str]) -> str:
    return " ".join(getattr(line, name) for name in names)


def _json_line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"
