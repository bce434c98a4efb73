"""Pseudo-labels on disk: what was dropped and why, settings that may not change, and the corpus when it is whole."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sprachbund.compression.filters import kind_of
from sprachbund.compression.speech import Source
from sprachbund.data.manifest import ManifestWriter
from sprachbund.errors import SprachbundError
from sprachbund.util.files import is_empty, read_model, read_object, write_json

SETTINGS = "pseudo_labels.json"
"""What a corpus of labels was begun with; the same command goes on only with the same."""
KEPT, THERE, UNKNOWN_PAIR = "kept", "there before", "pair unknown to the teacher"


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What has come of the labels.

    Attributes:
        utterances: in the corpus.
        left_out: utterances that it does not hold, by reason.
        counts: target language to what became of its labels: `KEPT`, `THERE`, `UNKNOWN_PAIR`, or a kind of reason for
            which they were dropped.
    """

    utterances: int
    left_out: dict[str, int]
    counts: dict[str, dict[str, int]]


class Record:
    """What became of a shard's labels; its file stands for the shard being finished."""

    def __init__(self) -> None:
        self.utterances = 0
        self.left_out: Counter[str] = Counter()
        self.counts: dict[str, Counter[str]] = {}
        self.dropped: list[dict[str, str]] = []

    def count(self, target: str, what: str) -> None:
        """A label in `target` that came to `what`."""
        self.counts.setdefault(target, Counter())[what] += 1

    def drop(self, job_id: str, target: str, text: str, reason: str) -> None:
        """A label that is not to be taught."""
        self.count(target, kind_of(reason))
        self.dropped.append({"id": job_id, "target": target, "text": text, "reason": reason})

    def leave_out(self, job_id: str, reason: str) -> None:
        """An utterance, or a file, that the corpus does not hold."""
        self.left_out[kind_of(reason)] += 1
        self.dropped.append({"id": job_id, "target": "", "text": "", "reason": reason})

    def write(self, path: Path) -> None:
        """Write it; the file appears whole or not at all."""
        write_json(path, vars(self))


class _Written(BaseModel):
    """A record as its file holds it."""

    model_config = ConfigDict(extra="forbid")

    utterances: int = Field(ge=0)
    left_out: dict[str, int]
    counts: dict[str, dict[str, int]]
    dropped: list[dict[str, str]]


def read_record(path: Path) -> dict[str, Any]:
    """What `Record.write` wrote. Raises SprachbundError, naming the field, for what is none."""
    advice = "delete it and the shard's cuts, and the shard is labelled again"
    return read_model(path, _Written, advice=advice).model_dump()


def claim(out: Path, settings: dict[str, Any]) -> None:
    """Make `out` ours, or see that it was begun with the same settings, so that labels never mix."""
    wanted = json.loads(json.dumps(settings))
    path = out / SETTINGS
    if path.exists():
        known = read_object(path, advice="delete it if the labels there were begun so, or name a new folder")
        changed = sorted(key for key in {*wanted, *known} if wanted.get(key) != known.get(key))
        if changed:
            raise SprachbundError(
                f"{out} was begun with another {', '.join(changed)} ({SETTINGS} there says which); name a new folder"
            )
        return
    if out.exists() and (not out.is_dir() or not is_empty(out)):
        raise SprachbundError(f"{out} is there already and is no corpus of labels; name a new folder")
    write_json(path, wanted)


def close(
    out: Path, sources: Sequence[Source], records: Sequence[dict[str, Any]], name: str, targets: Sequence[str]
) -> Labelled:
    """Describe the corpus and add up the records of its shards.

    Args:
        out: the corpus.
        sources: of its speech.
        records: as they were written, one for each shard.
        name: of the teacher.
        targets: languages wanted.

    Raises:
        SprachbundError: nothing was kept.
    """
    left_out, counts = Counter[str](), dict[str, Counter[str]]()
    for record in records:
        left_out.update(record["left_out"])
        for target, found in record["counts"].items():
            counts.setdefault(target, Counter()).update(found)
    if not any(record["utterances"] for record in records):
        why = ", ".join(f"{n} {what}" for what, n in (left_out + sum(counts.values(), Counter())).items())
        raise SprachbundError(
            f"no utterance of {', '.join(str(s.path) for s in sources)} is left ({why}); "
            "if these labels are good, loosen the thresholds of `sprachbund compress pseudo-label`"
        )
    infos = [source.info for source in sources]
    info: dict[str, Any] = {
        "name": f"{' + '.join(dict.fromkeys(str(i['name']) for i in infos))}, labelled by {name}",
        "version": "1",
        "languages": sorted(counts),
        "pseudo_labels": {"teacher": name, "targets": list(targets)},
    }
    for key in ("licence", "attribution"):
        found_values = [i[key] for i in infos if i.get(key)]
        info[key] = found_values[0] if len(found_values) == 1 else found_values or ""
    ManifestWriter(out).close(info)
    return Labelled(
        utterances=sum(record["utterances"] for record in records),
        left_out=dict(left_out),
        counts={target: dict(found) for target, found in sorted(counts.items())},
    )
