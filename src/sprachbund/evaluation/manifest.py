"""A result manifest: numbers together with all that decided them, so that they can be measured again.

Numbers that a machine decides (times, memory) are kept apart from those that must come out the same.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.failures import WRONG_LANGUAGE
from sprachbund.evaluation.options import EvaluationOptions, options_from
from sprachbund.util import provenance
from sprachbund.util.files import write_text
from sprachbund.util.options import renamed

MANIFEST_FILE = "scores.json"
WITHOUT_TIMESTAMPS = 1
"""The format of manifests whose `timestamps` was named and not asked for: rows were decoded without them."""
FORMER_IDENTIFIER = "character n-grams of sprachbund 0.1"
"""The identifier of the languages of texts in manifests that name none."""
_Manifest = TypeVar("_Manifest", bound=BaseModel)


class ManifestPart(BaseModel):
    """A part of a manifest; a field that is not one of its own is an error."""

    model_config = ConfigDict(extra="forbid")


class Number(ManifestPart):
    """One score; the fields are those of `sprachbund.evaluation.quality.Score`."""

    metric: str
    value: float
    signature: str
    group: str
    member: str
    task: str
    num_lines: int
    text: str = "raw"
    guard: bool = True

    @property
    def key(self) -> tuple[str, ...]:
        """Name of the number."""
        return (self.metric, self.group, self.member, self.task, self.text, str(self.guard))


class FailureRate(ManifestPart):
    """A failure: `failed` of `evaluated` lines of a pair, a kind of sound or "all", with or without guard."""

    failure: str
    member: str
    failed: int
    evaluated: int
    guard: bool

    @property
    def percent(self) -> float:
        """Failed ones per hundred evaluated."""
        return 100.0 * self.failed / self.evaluated if self.evaluated else 0.0

    @property
    def key(self) -> tuple[str, ...]:
        """Name of the rate."""
        return (self.failure, self.member, str(self.guard))


class DataUsed(ManifestPart):
    """A corpus that was used: path, name, hash and size, and the utterances that were not scored, with the reason."""

    path: str
    name: str
    sha256: str
    utterances: int
    scored_utterances: int
    without_reference: dict[str, int] = {}
    unknown_pairs: dict[str, int] = {}
    without_speech: int = 0
    too_long: int = 0
    over_limit: int = 0
    other_sources: int = 0


class ModelUsed(ManifestPart):
    """A model that was used: the name it was asked for by, the name on its card, its hash."""

    path: str
    name: str
    sha256: str


def _current_rate(rate: dict[str, Any], source: str) -> dict[str, Any]:
    return renamed(rate, {"judged": "evaluated"}, source)


def _current_metric(name: str) -> str:
    former = ": judged"
    return f"{name.removesuffix(former)}: evaluated" if name.endswith(former) else name


_FORMAT: Literal[2] = 2


class ResultManifest(ManifestPart):
    """Results of an evaluation, with its data, model, options and software.

    Attributes:
        format: 2, or that of older manifests, see `WITHOUT_TIMESTAMPS`.
        kind: kind of measurement.
        numbers: scores, which a rerun must give again.
        failures: rates of failures, which a rerun must give again.
        measured: times and memory, which another run gives differently.
        identifier: identifier of languages of texts, by which outputs in the wrong language are counted: name and
            version.
        race: speed beside other models', one row each.
        data: corpora in the order given.
        model: model that was evaluated.
        configuration: everything a rerun needs beside data and model; `options_of` reads it.
        seed: seed of all that is drawn.
        commit: commit of the source tree, None outside one.
        machine: machine that computed.
        versions: versions of the libraries.
        created: date and time, UTC.
    """

    format: Literal[1, 2] = _FORMAT
    kind: Literal["evaluate"] = "evaluate"
    numbers: list[Number]
    failures: list[FailureRate] = []
    measured: dict[str, float | None] = {}
    identifier: str = FORMER_IDENTIFIER
    race: list[dict[str, str | float]] = []
    data: list[DataUsed]
    model: ModelUsed
    configuration: dict[str, Any]
    seed: int
    commit: str | None = Field(default_factory=provenance.commit)
    machine: dict[str, str | int] = Field(default_factory=provenance.machine)
    versions: dict[str, str] = Field(default_factory=provenance.versions)
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, values: Any, info: ValidationInfo) -> Any:
        """Read `evaluated` where a file of an earlier version has `judged`, in rates and in names of metrics."""
        source = str((info.context or {}).get("path", "a manifest"))
        try:
            rates = [_current_rate(rate, source) for rate in values.get("failures", [])]
            numbers = [{**one, "metric": _current_metric(one["metric"])} for one in values["numbers"]]
        except (TypeError, KeyError, AttributeError):  # no manifest; validation says so
            return values
        return {**values, "failures": rates, "numbers": numbers}

    @property
    def num_lines(self) -> int:
        """Hypotheses of speech that were scored."""
        return sum({n.member: n.num_lines for n in self.numbers if n.group == "pair"}.values())

    def check_lines(self, num_lines: int) -> None:
        """Raises SprachbundError when hypotheses of speech are more or fewer than were scored."""
        if num_lines != self.num_lines:
            raise SprachbundError(
                f"there are {num_lines} hypotheses of speech, and {MANIFEST_FILE} is of {self.num_lines}; "
                "evaluate again, or restore the hypotheses: nothing is scored on a part"
            )

    def number(self, metric: str, member: str, **wanted: Any) -> Number | None:
        """The first number of a metric and member whose other fields are as wanted."""
        for number in self.numbers:
            same = all(getattr(number, name) == value for name, value in wanted.items())
            if number.metric == metric and number.member == member and same:
                return number
        return None

    def write(self, path: Path) -> None:
        """Write it; the file appears whole or not at all."""
        write_rows(self.model_dump(mode="json"), path)


def write_rows(values: dict[str, Any], path: Path) -> None:
    """Write a manifest's values, one number to a row; the file appears whole or not at all."""
    write_text(path, _one_row_each(values))


def _one_row_each(values: dict[str, Any]) -> str:
    """JSON with one number to a row: people read and compare these files."""
    parts = []
    for name, value in values.items():
        if isinstance(value, list) and value:
            rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in value)
            parts.append(f" {json.dumps(name)}: [\n  {rows}\n ]")
        else:
            parts.append(f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read_manifest(path: Path) -> ResultManifest:
    """Read a result manifest, or the one in a directory of results.

    Raises:
        SprachbundError: naming file, line or field, for what is not one.
    """
    path = manifest_path(path)
    values = read_values(path)
    if isinstance(values, dict) and isinstance(written := values.get("format"), int) and written > _FORMAT:
        raise SprachbundError(
            f"{path} is a manifest of format {written}, known here are formats up to {_FORMAT}; use the release that "
            f"wrote it ({values.get('versions')})"
        )
    return validated(ResultManifest, values, path)


def manifest_path(path: Path) -> Path:
    """A path, or the manifest in a directory of results."""
    return path / MANIFEST_FILE if path.is_dir() else path


def read_values(path: Path) -> Any:
    """The JSON of a manifest. Raises SprachbundError, naming file and line, for what is none."""
    try:
        text = path.read_bytes().decode()
        if text.startswith("\ufeff"):
            raise SprachbundError(f"{path}:1: begins with a byte order mark; save it as UTF-8 without one")
        return json.loads(text)
    except FileNotFoundError as error:
        raise SprachbundError(f"{path} does not exist; make it with `sprachbund evaluate --out`") from error
    except json.JSONDecodeError as error:
        raise SprachbundError(f"{path}:{error.lineno}: not JSON ({error.msg}); restore the file") from error
    except UnicodeDecodeError as error:
        raise SprachbundError(f"{path}: not UTF-8 text ({error.reason}); restore the file") from error
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of thousands of digits
        reason = next(iter(str(error).splitlines()), "")[:100]
        raise SprachbundError(f"{path}: not JSON ({reason}); restore the file") from None
    except OSError as error:
        raise SprachbundError(f"{path}: {error.strerror or error}; check the path") from error


def validated(model: type[_Manifest], values: Any, path: Path) -> _Manifest:
    """A manifest from the JSON of a file. Raises SprachbundError, naming file and field, for what is none.

    Args:
        model: class of the manifest.
        values: parsed JSON.
        path: file that the values are from, for errors.
    """
    try:
        return model.model_validate(values, context={"path": path})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        raise SprachbundError(
            f"{path}: {field}: {first['msg']}; this is no result manifest, or was edited"
        ) from error


def differences(old: ResultManifest, new: ResultManifest, tolerance: float = 1e-9) -> Sequence[str]:
    """Every number of `old` that `new` does not give again, in words; empty when all are the same.

    Outputs in the wrong language are compared where the same identifier counted them.

    Args:
        old: the manifest to be reproduced.
        new: a later measurement.
        tolerance: largest absolute difference of equal values.
    """
    again = {number.key: number.value for number in new.numbers}
    rates = {rate.key: (rate.failed, rate.evaluated) for rate in new.failures}
    differing = []
    counted_alike = old.identifier == new.identifier
    for number in old.numbers:
        if number.metric.startswith(WRONG_LANGUAGE) and not counted_alike:
            continue
        label = " ".join(part for part in number.key if part)
        value = again.get(number.key)
        if value is None:
            differing.append(f"{label}: was {number.value:.4f}, is not measured now")
        elif abs(value - number.value) > tolerance:
            differing.append(f"{label}: was {number.value:.4f}, is {value:.4f}")
    for rate in old.failures:
        if rate.failure == WRONG_LANGUAGE and not counted_alike:
            continue
        now = rates.get(rate.key)
        if now != (rate.failed, rate.evaluated):
            after = "missing" if now is None else f"{now[0]} of {now[1]}"
            differing.append(f"{' '.join(rate.key)}: was {rate.failed} of {rate.evaluated}, is {after}")
    return differing


def options_of(manifest: ResultManifest, path: Path | None = None) -> EvaluationOptions:
    """The options that a manifest's numbers were measured under; errors as in `options_from`."""
    options = options_from(manifest.configuration, path)
    if manifest.format == WITHOUT_TIMESTAMPS:
        return replace(options, decoding=replace(options.decoding, timestamps=False))
    return options
