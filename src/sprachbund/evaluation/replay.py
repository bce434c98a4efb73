"""Measures what a result manifest says again, and compares the two."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sprachbund.corpora.editions import EDITIONS
from sprachbund.data.shards import Shards, is_url
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.compare import FileManifest, read_file_manifest, row_differences, run_again
from sprachbund.evaluation.manifest import (
    DataUsed,
    ResultManifest,
    differences,
    manifest_path,
    options_of,
    read_values,
    validated,
)
from sprachbund.evaluation.run import evaluate
from sprachbund.models.catalogue import SHIPPED
from sprachbund.models.io import content_hash, family_of, locate
from sprachbund.util import provenance
from sprachbund.util.devices import torch_threads
from sprachbund.util.progress import StageProgress


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The result of a replay.

    Attributes:
        old: the manifest replayed.
        new: manifest of the new measurement.
        different: numbers that came out differently, in words.
        changed: versions, machine and commit that are not what they were, in words.
    """

    old: ResultManifest | FileManifest
    new: ResultManifest | FileManifest
    different: Sequence[str]
    changed: Sequence[str]

    @property
    def same(self) -> bool:
        """Whether every number came out the same."""
        return not self.different

    def in_words(self) -> str:
        """Result of the replay in words."""
        count = _count(self.old)
        around = f" ({'; '.join(self.changed)})" if self.changed else ""
        if self.same:
            return f"the same: all {count} numbers came out again{around}"
        shown = "\n".join(f"  {line}" for line in self.different[:20])
        more = f"\n  and {len(self.different) - 20} more" if len(self.different) > 20 else ""
        return f"not the same: {len(self.different)} of {count} numbers differ{around}\n{shown}{more}"


def replay(
    path: Path,
    *,
    data: Sequence[Path] = (),
    model: str | None = None,
    offline: bool = False,
    progress: StageProgress = lambda what, done, total: None,
) -> Replay:
    """Run a manifest's evaluation again, or the scoring or comparing of files that one is of.

    Args:
        path: the manifest, or the directory of results it is in.
        data: folders of its corpora now, in any order (they are recognised by their hashes); the paths in the manifest
            if none are given.
        model: path of the model now; the path in the manifest if not given.
        offline: never use the network.
        progress: called with the stage, the amount done and the total.

    Raises:
        SprachbundError: when data or model are not there or not those measured, before any decoding.
    """
    values = read_values(manifest_path(path))
    if isinstance(values, dict) and values.get("kind") in ("score", "compare"):
        return _replay_files(read_file_manifest(values, path), path, [*data, *([model] if model else [])])
    if isinstance(values, dict) and "rows" in values:
        raise SprachbundError(_of_a_table(values, path))
    old = validated(ResultManifest, values, manifest_path(path))
    options = options_of(old, manifest_path(path))
    directories = _find_data(old, data, path)
    location = model or _model_path(old, path)
    directory = locate(location, offline=offline)
    family_of(directory)  # an error that names what is wrong with a directory that holds no model
    sha256 = content_hash(directory)
    if sha256 != old.model.sha256:
        raise SprachbundError(
            f"the model {location} has hash {sha256[:12]}, the manifest was measured with "
            f"{old.model.sha256[:12]} ({old.model.name}); give that one with --model"
        )
    with torch_threads(int(old.configuration.get("num_threads", torch.get_num_threads()))):
        new = evaluate(directories, location, options, offline=offline, progress=progress).manifest
    return Replay(old=old, new=new, different=differences(old, new), changed=_changed(old, new))


def _replay_files(old: FileManifest, path: Path, elsewhere: Sequence[object]) -> Replay:
    if elsewhere:
        raise SprachbundError(
            f"{path} is of files ({', '.join(used.path for used in old.files)}), which are looked for where they "
            "were and beside it; leave out --data and --model"
        )
    new = run_again(old, path)
    different = row_differences(old.numbers, new.numbers)
    return Replay(old=old, new=new, different=different, changed=_changed(old, new))


def _of_a_table(values: Mapping[str, Any], path: Path) -> str:
    """The message about a table of rows, with the way to make it anew."""
    command = values.get("command")
    how = (
        f"run: {command}"
        if isinstance(command, str)
        else "docs/results.md, or the page that names it, says by which command it was made"
    )
    return f"{path} is a table of rows, and replay measures manifests of `evaluate --out` again; to make it anew, {how}"


def _count(manifest: ResultManifest | FileManifest) -> int:
    if isinstance(manifest, ResultManifest):
        return len(manifest.numbers) + len(manifest.failures)
    return sum(isinstance(value, int | float) for row in manifest.numbers for value in row.values())


def _find_data(old: ResultManifest, given: Sequence[Path], path: Path) -> list[Path]:
    """The directory of each corpus, in the manifest's order."""
    commands = {_near(Path(used.path), path): _making(used) for used in old.data}
    candidates = list(given) or list(commands)
    by_hash: dict[str, Path] = {}
    for directory in candidates:
        if not is_url(directory) and not directory.is_dir():
            made = f", or make it with {commands[directory]}" if directory in commands else ""
            raise SprachbundError(f"the corpus {directory} is not there; say where it is with --data{made}")
        by_hash[Shards(directory).digest if is_url(directory) else provenance.data_hash(directory)] = (
            directory
        )
    for used in old.data:
        if used.sha256 not in by_hash:
            candidates_text = ", ".join(f"{directory} ({sha[:12]})" for sha, directory in by_hash.items())
            raise SprachbundError(
                f"no corpus with the hash {used.sha256[:12]} of {used.name}; found {candidates_text}: the data have "
                "changed, or are elsewhere: say where with --data"
            )
    return [by_hash[used.sha256] for used in old.data]


def _making(used: DataUsed) -> str:
    """The command that makes a corpus, by its name."""
    kind, _, rest = used.name.partition("/")
    edition = rest.partition("/")[0]
    if kind == "phrasebook" and edition in EDITIONS:
        kind = f"phrasebook --edition {edition}"
    elif kind not in ("telephone", "mixed", "outside"):
        return "`sprachbund data make` or `data prepare`"
    return f"`sprachbund data make {kind} --out {Path(used.path).parent}`"


def _model_path(old: ResultManifest, path: Path) -> str:
    if old.model.path in SHIPPED:
        return old.model.path
    return str(_near(Path(old.model.path), path))


def _near(path: Path, manifest: Path) -> Path:
    """A path as written or, when it does not exist, the same path relative to the manifest's folder."""
    relative = manifest.parent / path
    return relative if not path.exists() and relative.exists() else path


def _changed(old: ResultManifest | FileManifest, new: ResultManifest | FileManifest) -> list[str]:
    """Versions, properties of the machine and the commit that differ, one line each."""
    commits = {"": old.commit}, {"": new.commit}
    identifiers = []
    if (
        isinstance(old, ResultManifest)
        and isinstance(new, ResultManifest)
        and old.identifier != new.identifier
    ):
        identifiers = [
            f"outputs in the wrong language were counted by {old.identifier}, now by {new.identifier}, and are not "
            "compared"
        ]
    return [
        *identifiers,
        *_changes("version of", old.versions, new.versions),
        *_changes("machine's", old.machine, new.machine),
        *[line.replace("commit  was", "commit was") for line in _changes("commit", *commits)],
    ]


def _changes(name: str, before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    keys = sorted(before.keys() | after.keys())
    return [
        f"{name} {key} was {before.get(key)}, is {after.get(key)}"
        for key in keys
        if before.get(key) != after.get(key)
    ]
