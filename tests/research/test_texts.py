"""The file of texts gives back the lines of its runs, on data that are the same."""

from dataclasses import replace
from pathlib import Path

import pytest

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.lines import DecodingEvidence, Line
from sprachbund.research.texts import TEXTS_FILE, WrittenTexts, write_texts


def made(texts: str, targets: str = "de en") -> list[Line]:
    """A line for each text and target."""
    return [
        Line(
            id=f"u{number}",
            source="es",
            target=target,
            hypothesis=f"{text} {target}",
            reference=f"reference {number} {target}",
            evidence=DecodingEvidence(),
            switched=number == 0,
        )
        for number, text in enumerate(texts.split())
        for target in targets.split()
    ]


@pytest.fixture
def written(tmp_path: Path) -> WrittenTexts:
    path = tmp_path / TEXTS_FILE
    runs = [("first", 0, made("a b c")), ("first", 1, made("d e f")), ("second", 0, made("g h i"))]
    assert write_texts(path, runs) == {"references": 6, "different references": 6}
    return WrittenTexts.read(path)


def test_lines_of_a_run_are_those_of_another_with_its_texts(written: WrittenTexts) -> None:
    other = made("x y z", "de en mul")  # a system with one more target
    assert list(written.lines("first", 1, other)) == made("d e f")
    assert list(written.lines("second", 0, other)) == made("g h i")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (made("x y"), "has 'reference 2 de' as the reference of 'u2 de', which is not there in the data"),
        (
            [replace(line, reference="another") for line in made("x y z")],
            "of 'u0 de', which says 'another' in the data; make the data with the command",
        ),
    ],
)
def test_other_data_are_an_error(written: WrittenTexts, other: list[Line], message: str) -> None:
    with pytest.raises(SprachbundError, match=message):
        list(written.lines("first", 0, other))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory; give the texts.jsonl.gz of a run"),
        (b"no gzip", "Not a gzipped file"),
        (b"", "is no texts.jsonl.gz of a run"),
    ],
)
def test_another_file_is_an_error(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "other.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SprachbundError, match=message):
        WrittenTexts.read(path)


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / TEXTS_FILE
    write_texts(path, [("first", 0, made("a b c"))])
    content = bytearray(path.read_bytes())
    content[10] ^= 0xFF  # of the deflated stream behind the head
    path.write_bytes(content)
    with pytest.raises(SprachbundError, match=r"is no texts\.jsonl\.gz of a run"):
        WrittenTexts.read(path)
