"""Which utterances are taken: the same ones whatever their order, none twice, languages in turn."""

from collections import Counter

import numpy as np
import pytest

from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.errors import SprachbundError
from sprachbund.research.gradient_sharing.gradients import choose_rows, fits
from tests.training import made

TAGS = ("de", "en", "fr")


class Polyglot:
    """Knows all pairs of three languages."""

    def pairs(self):
        return {(source, target) for source in TAGS for target in TAGS}


def _write(directory, order, languages=TAGS, texts=TAGS):
    with ManifestWriter(directory) as writer:
        for i in order:
            language = languages[i % len(languages)]
            writer.add(
                np.zeros(160, np.float32),
                text=f"{language} {i}",
                language=language,
                speaker="",
                utterance_id=f"u{i}",
                translations={tag: f"{tag} {i}" for tag in texts if tag != language},
            )
        writer.add(np.zeros(160, np.float32), text="", language="", speaker="", utterance_id="hum")
    return Manifest(directory)


def _choose(manifests, **changes):
    options = {"by": "source", "count": 6, "seed": 0, "fits": lambda model, u, target: u.text_in(target)}
    return choose_rows(Polyglot(), manifests, **{**options, **changes}).rows


def _names(rows):
    return {key: [(row.id, row.target) for row in result] for key, result in rows.items()}


@pytest.mark.parametrize("by", ["source", "target", "pair"])
def test_order_and_division_of_the_data_do_not_matter(tmp_path, by):
    first = _choose([_write(tmp_path / "a", range(60))], by=by)
    backwards = _choose([_write(tmp_path / "b", reversed(range(60)))], by=by)
    pieces = [_write(tmp_path / "c", range(30, 60)), _write(tmp_path / "d", range(30))]
    assert _names(first) == _names(backwards) == _names(_choose(pieces, by=by))
    assert _names(first) != _names(_choose([Manifest(tmp_path / "a")], by=by, seed=1))


def test_by_source_the_targets_take_turns(tmp_path):
    rows = _choose([_write(tmp_path, range(60))], count=9)
    assert list(rows) == ["de", "en", "fr"]
    for source, result in rows.items():
        assert {row.source for row in result} == {source}
        assert Counter(row.target for row in result) == {"de": 3, "en": 3, "fr": 3}
        assert len({row.id for row in result}) == 9


def test_by_target_the_sources_take_turns(tmp_path):
    rows = _choose([_write(tmp_path, range(60))], by="target", count=9)
    for target, result in rows.items():
        assert {row.target for row in result} == {target}
        assert Counter(row.source for row in result) == {"de": 3, "en": 3, "fr": 3}
        assert len({row.id for row in result}) == 9


def test_pairs_are_named_and_pure(tmp_path):
    rows = _choose([_write(tmp_path, range(60), texts=("de", "en"))], by="pair")
    assert set(rows) == {f"{s}>{t}" for s in TAGS for t in TAGS if t in ("de", "en") or s == t}
    assert {(row.source, row.target) for row in rows["de>en"]} == {("de", "en")}


def test_what_is_passed_over_is_counted(tmp_path):
    manifest = _write(tmp_path, range(60))
    even = lambda model, u, target: int(u.id[1:]) % 2 == 0  # noqa: E731
    for by, key in (("source", "de"), ("pair", "de>en")):
        chosen = choose_rows(Polyglot(), [manifest], by=by, count=10, seed=0, fits=even)
        assert all(int(row.id[1:]) % 2 == 0 for row in chosen.rows[key])
        assert 0 < chosen.passed_over[key] <= 10


def test_only_what_is_asked_for(tmp_path):
    manifest = _write(tmp_path, range(60))
    assert list(_choose([manifest], languages=["fr", "de"])) == ["de", "fr"]
    rows = _choose([manifest], targets=["en"])
    assert {row.target for result in rows.values() for row in result} == {"en"}
    assert list(_choose([manifest], by="pair", languages=["fr>de"])) == ["fr>de"]


def test_an_utterance_is_read_with_its_text(tmp_path):
    manifest = _write(tmp_path, range(60))
    row = next(row for row in _choose([manifest])["de"] if row.target == "fr")
    spoken = row.read([manifest])
    assert spoken.text == f"fr {row.id[1:]}"
    assert (spoken.source, spoken.target, len(spoken.samples)) == ("de", "fr", 160)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"count": 21}, "de has 20 utterances that can be used, 21 are needed.*--utterances"),
        ({"languages": ["sw"]}, "data hold nothing for sw; they hold de, en, fr"),
        ({"targets": ["sw"]}, "does not write sw"),
        ({"by": "pair", "languages": ["de>sw"]}, "data hold nothing for de>sw"),
        ({"fits": lambda *given: False}, "de has 0 utterances"),
    ],
)
def test_what_cannot_be_is_named(tmp_path, changes, said):
    with pytest.raises(SprachbundError, match=said):
        _choose([_write(tmp_path, range(60))], **changes)


def test_a_language_the_model_does_not_know_has_to_be_left_out(tmp_path):
    manifest = _write(tmp_path, range(60), languages=("de", "en", "pl"))
    with pytest.raises(SprachbundError, match=r"does not know pl; .*--languages: de, en$"):
        _choose([manifest])
    assert list(_choose([manifest], languages=["de", "en"])) == ["de", "en"]


def test_what_does_not_fit_the_model_is_left_out(tmp_path):
    model = made.make_model()
    with ManifestWriter(tmp_path) as writer:
        for name, text, seconds in (("ok", "eins", 1), ("wordy", "eins " * 40, 1), ("long", "eins", 16)):
            writer.add(
                np.zeros(16_000 * seconds, np.float32),
                text=text,
                language="de",
                speaker="",
                utterance_id=name,
                translations={"en": " "},
            )
    manifest = Manifest(tmp_path)
    assert [u.id for u in manifest if fits(model, u, "de")] == ["ok"]
    assert not any(fits(model, u, "en") for u in manifest)
