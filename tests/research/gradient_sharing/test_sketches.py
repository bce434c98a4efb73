"""Files of gradients: from us, from anybody, and broken in every way."""

import json
from pathlib import Path

import numpy as np
import pytest

from sprachbund.errors import SprachbundError
from sprachbund.research.gradient_sharing.sketches import Sketches, read_sketches, write_sketches
from tests.research.gradient_sharing.made import planted_rows, sketches

ROWS = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_what_is_written_comes_back_bit_for_bit(tmp_path: Path) -> None:
    made = sketches(planted_rows((2, 2)), planted_rows((2, 2), seed=1), model_hash="ab", seed=3)
    write_sketches(tmp_path / "deep" / "g.npz", made)
    again = read_sketches(tmp_path / "deep" / "g.npz")
    assert again.info == {"model_hash": "ab", "seed": 3}
    assert again.modules == made.modules
    for module in made.modules:
        for language, rows in made.vectors[module].items():
            np.testing.assert_array_equal(again.vectors[module][language], rows)
    assert not list(tmp_path.glob("deep/*.partial"))


def test_the_same_sketches_make_the_same_file(tmp_path: Path) -> None:
    rows = planted_rows((2, 2))
    write_sketches(tmp_path / "a.npz", sketches(rows))
    write_sketches(tmp_path / "b.npz", sketches(dict(reversed(rows.items()))))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_files_from_anybody_are_brought_to_unit_length(tmp_path: Path) -> None:
    tiny = 1e-200 * np.random.default_rng(1).standard_normal((4, 8))  # squares and float32 would be zero
    path = saved(tmp_path / "g.npz", **{"net|5.ffn|de": 7 * ROWS.astype(np.float16), "net|5.ffn|en": tiny})
    made = read_sketches(path)
    assert made.modules == ("net|5.ffn",)
    assert made.languages == ("de", "en")
    assert made.info == {}
    for language, raw in (("de", ROWS), ("en", tiny)):
        rows = made.vectors["net|5.ffn"][language]
        assert rows.dtype == np.float32
        scaled = raw / np.abs(raw).max()
        np.testing.assert_allclose(rows, scaled / np.linalg.norm(scaled, axis=1, keepdims=True), atol=1e-3)


def test_modules_come_in_the_order_of_counting() -> None:
    names = [f"layers.{i}.ffn" for i in (10, 2, 0, 11, 1)]
    made = Sketches(vectors={name: {"de": ROWS, "en": ROWS} for name in names})
    assert made.modules == tuple(f"layers.{i}.ffn" for i in (0, 1, 2, 10, 11))


NAN, ZERO = ROWS.copy(), ROWS.copy()
NAN[2, 1], ZERO[[1, 3]] = np.nan, 0


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({"m|de": ROWS[0], "m|en": ROWS}, ["'m|de'", "shape (8,)", "two axes"]),
        ({"m|de": ROWS[None], "m|en": ROWS}, ["'m|de'", "(1, 5, 8)"]),
        ({"m|de": ROWS[:0], "m|en": ROWS}, ["'m|de'", "(0, 8)"]),
        ({"m.de": ROWS}, ["'m.de'", "module|language"]),
        ({"|de": ROWS}, ["'|de'", "module|language"]),
        ({"m|": ROWS}, ["'m|'", "module|language"]),
        ({"m|de": ROWS}, ["one language only", "de"]),
        ({"info": np.array("{}")}, ["no arrays", "module|language"]),
        ({"m|de": NAN, "m|en": ROWS}, ["'m|de'", "not finite", "row 2"]),
        ({"m|de": ROWS, "m|en": ZERO}, ["'m|en'", "all zeros", "rows 1, 3"]),
        ({"m|de": ROWS, "m|en": ROWS[:, :6]}, ["module m", "de 8, en 6"]),
        ({"a|de": ROWS, "a|en": ROWS, "b|de": ROWS}, ["module b", "no vectors of en"]),
        ({"m|de": ROWS.astype(complex), "m|en": ROWS}, ["'m|de'", "complex"]),
        ({"m|de": np.array([["a"]]), "m|en": ROWS}, ["'m|de'", "<U1"]),
        ({"m|de": np.array([[None]]), "m|en": ROWS}, ["'m|de'", "cannot be read"]),
        ({"m|de": ROWS, "m|en": ROWS, "info": np.array("{")}, ["'info'", "JSON"]),
        ({"m|de": ROWS, "m|en": ROWS, "info": np.array("[1]")}, ["'info'", "JSON object"]),
        ({"m|de": ROWS, "m|en": ROWS, "info": ROWS}, ["'info'", "one string"]),
    ],
)
def test_broken_files_are_named_precisely(tmp_path: Path, arrays: dict, parts: list[str]) -> None:
    path = saved(tmp_path / "g.npz", **arrays)
    with pytest.raises(SprachbundError) as error:
        read_sketches(path)
    assert "\n" not in str(error.value)
    for part in [str(path), *parts]:
        assert part in str(error.value)


def test_what_is_no_npz(tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match="is not a file"):
        read_sketches(tmp_path / "nowhere.npz")
    with pytest.raises(SprachbundError, match="is not a file"):
        read_sketches(tmp_path)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(SprachbundError, match=r"not an \.npz"):
        read_sketches(tmp_path / "text.npz")
    whole = saved(tmp_path / "whole.npz", **{"m|de": ROWS, "m|en": ROWS}).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SprachbundError, match=r"not an \.npz"):
        read_sketches(tmp_path / "cut.npz")
    broken = bytearray(whole)
    broken[200:260] = bytes(60)
    (tmp_path / "broken.npz").write_bytes(broken)
    with pytest.raises(SprachbundError, match=r"broken.npz: array 'm\|de' cannot be read"):
        read_sketches(tmp_path / "broken.npz")


def test_info_is_plain_json(tmp_path: Path) -> None:
    write_sketches(tmp_path / "g.npz", sketches(planted_rows((1, 1)), model="Bemba und Gälisch"))
    with np.load(tmp_path / "g.npz") as file:
        assert json.loads(str(file["info"])) == {"model": "Bemba und Gälisch"}
