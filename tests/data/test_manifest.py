"""Manifests: what is written is read back, by us and by lhotse, and a broken-off writing goes on."""

import json

import numpy as np
import pytest

from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.errors import SprachbundError


def _write(directory, count, shard_size=4, start=0):
    rng = np.random.default_rng(0)
    writer = ManifestWriter(directory, shard_size=shard_size)
    sounds = [rng.uniform(-0.5, 0.5, 800 + 160 * i).astype(np.float32) for i in range(start + count)]
    for i in range(start, start + count):
        writer.add(
            sounds[i],
            text=f"text {i}",
            language="en",
            speaker="s",
            utterance_id=f"u{i}",
            translations={"ru": f"слово {i}"},
            custom={"kind": "number"},
        )
    return writer, sounds


def test_round_trip(tmp_path):
    writer, sounds = _write(tmp_path, 10)
    writer.close({"name": "made"})
    manifest = Manifest(tmp_path)
    assert len(manifest) == 10
    for i, utterance in enumerate(manifest):
        assert (utterance.id, utterance.text, utterance.text_in("ru")) == (f"u{i}", f"text {i}", f"слово {i}")
        assert utterance.custom == {"kind": "number"}
        np.testing.assert_allclose(manifest.samples(i), sounds[i], atol=1e-4)
    info = json.loads((tmp_path / "dataset.json").read_text())
    assert info["name"] == "made"
    assert info["per_language"]["en"]["utterances"] == 10


def test_lhotse_reads_it(tmp_path):
    writer, sounds = _write(tmp_path, 6)
    writer.close()
    cuts = list(Manifest(tmp_path).cuts())
    assert [cut.supervisions[0].custom["translations"]["ru"] for cut in cuts] == [
        f"слово {i}" for i in range(6)
    ]
    np.testing.assert_allclose(cuts[5].load_audio()[0], sounds[5], atol=1e-4)


def test_continues_after_whole_shards(tmp_path):
    _write(tmp_path, 6)  # one whole shard of 4; the rest is lost, as by a kill
    assert len(Manifest(tmp_path)) == 4
    writer, _ = _write(tmp_path, 3, start=4)
    writer.close()
    assert [u.id for u in Manifest(tmp_path)] == [f"u{i}" for i in range(7)]


def test_empty_directory_names_the_next_step(tmp_path):
    with pytest.raises(SprachbundError, match="data make"):
        Manifest(tmp_path)


def test_shares_are_nested_and_near_what_was_asked_for(tmp_path):
    with ManifestWriter(tmp_path, shard_size=100) as writer:
        for i in range(1000):
            writer.add(
                np.zeros(160, np.float32),
                text="x",
                language="de" if i % 2 else "en",
                speaker="s",
                utterance_id=f"u{i}",
            )
    found = {share: Manifest(tmp_path, {"de": share}) for share in (0.0, 0.05, 0.3, 1.0)}
    ids = {share: {u.id for u in m if u.language == "de"} for share, m in found.items()}
    assert ids[0.0] == set()
    assert ids[0.05] < ids[0.3] < ids[1.0]
    assert len(ids[1.0]) == 500
    assert abs(len(ids[0.3]) - 150) < 4 * (500 * 0.3 * 0.7) ** 0.5
    assert all((m.languages == "en").sum() == 500 for m in found.values())
    with pytest.raises(SprachbundError, match="holds no speech in fr"):
        Manifest(tmp_path, {"fr": 0.5})
