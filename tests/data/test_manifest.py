"""Manifests: what is written is read back, by us and by lhotse, and a broken-off writing goes on."""

import hashlib
import json
import multiprocessing
import pickle
import shutil

import numpy as np
import pytest

from sprachbund.cli import main
from sprachbund.data import manifest as manifests
from sprachbund.data.manifest import (
    Manifest,
    ManifestWriter,
    corpora_in,
    distinct_directories,
    in_both,
    read_info,
)
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.run import open_corpus
from sprachbund.util.options import RenamedWarning


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


def test_one_in_so_many_is_evenly_drawn_and_meets_kinds_that_take_turns(tmp_path):
    writer, _ = _write(tmp_path, 200, shard_size=200)
    writer.close()
    manifest = Manifest(tmp_path)
    assert list(manifest.every(1)) == list(range(200))
    for step in (2, 4, 10):
        drawn = list(manifest.every(step))
        assert drawn == list(manifest.every(step))
        assert [index // step for index in drawn] == list(range(200 // step))
        assert {index % 2 for index in drawn} == {0, 1}
    assert next(iter(manifest.every(1000))) < 200


def test_lhotse_reads_it(tmp_path):
    writer, sounds = _write(tmp_path, 6)
    writer.close()
    cuts = list(Manifest(tmp_path).cuts())
    assert [cut.supervisions[0].custom["translations"]["ru"] for cut in cuts] == [
        f"слово {i}" for i in range(6)
    ]
    np.testing.assert_allclose(cuts[5].load_audio()[0], sounds[5], atol=1e-4)


def test_fields_of_earlier_versions_come_under_the_names_of_today_with_one_warning_each(tmp_path):
    current = {
        "embedded_words": ["tea"],
        "embedded_ranges": {"ru": [[1, 2]]},
        "spans": [{"language": "en", "text": "tea", "word_ranges": {"ru": [1, 2]}}, {"language": "ru"}],
    }
    with ManifestWriter(tmp_path / "now") as writer:
        for i in range(3):
            writer.add(
                np.zeros(800, np.float32),
                text="чай tea",
                language="ru",
                speaker="s",
                utterance_id=f"u{i}",
                custom=current,
            )
    assert [u.custom for u in Manifest(tmp_path / "now")] == [current] * 3
    former = shutil.copytree(tmp_path / "now", tmp_path / "former")
    lines = former / "cuts.00000.jsonl"
    names = {
        "embedded_words": "foreign_words",
        "embedded_ranges": "foreign_places",
        "word_ranges": "places",
    }
    for new, old in names.items():
        lines.write_text(lines.read_text().replace(f'"{new}"', f'"{old}"'))
    (former / "shard.00000.sha256").unlink()  # corpora of earlier versions have none
    with pytest.warns(RenamedWarning) as seen:
        opened = [kind(former) for kind in (open_corpus, Manifest)]
    assert [[u.custom for u in manifest] for manifest in opened] == [[current] * 3] * 2
    assert [str(warning.message).partition(";")[0] for warning in seen] == [
        f"{former}: {old} is called {new} now" for new, old in names.items()
    ]
    lines.write_text(
        lines.read_text().replace('"foreign_words": ["tea"]', '"foreign_words": [], "embedded_words": []')
    )
    with pytest.raises(SprachbundError, match="foreign_words is the former name of embedded_words"):
        Manifest(former)


def test_continues_after_whole_shards(tmp_path):
    _write(tmp_path, 6)  # one whole shard of 4; the rest is lost, as by a kill
    assert len(Manifest(tmp_path)) == 4
    writer, _ = _write(tmp_path, 3, start=4)
    writer.close()
    assert [u.id for u in Manifest(tmp_path)] == [f"u{i}" for i in range(7)]


def test_a_shard_is_no_longer_than_a_wav_file_can_be(tmp_path, monkeypatch):
    assert (2 * manifests._MOST_SAMPLES + 36) < 2**32 <= (2 * (manifests._MOST_SAMPLES + 1) + 36)
    monkeypatch.setattr(manifests, "_MOST_SAMPLES", 800 + 960)
    with pytest.raises(SprachbundError, match=r"with u2, a shard has .* make smaller shards"):
        _write(tmp_path, 3)
    writer, _ = _write(tmp_path, 2)
    writer.close()
    assert len(Manifest(tmp_path)) == 2


def test_a_corpus_named_twice_is_refused_however_it_is_written(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    (tmp_path / "link").symlink_to(one)
    assert distinct_directories([one, str(two)]) == [one, two]
    for again in (one, tmp_path / "two" / ".." / "one", tmp_path / "link"):
        with pytest.raises(SprachbundError, match="is named twice; name each corpus directory once"):
            distinct_directories([one, two, again])
        assert in_both([one], [two, again]) == [again]
    assert in_both([one], [two]) == []


def test_empty_directory_names_the_next_step(tmp_path):
    with pytest.raises(SprachbundError, match="data make"):
        Manifest(tmp_path)


def test_a_folder_of_corpora_names_them(tmp_path, capsys):
    for part in ("train", "dev"):
        _write(tmp_path / "own" / part, 1)[0].close()
    for way in (Manifest, open_corpus):
        with pytest.raises(SprachbundError, match=rf"name one of {tmp_path}/own/dev, {tmp_path}/own/train$"):
            way(tmp_path / "own")
        with pytest.raises(SprachbundError, match=rf"{tmp_path}/nosuch does not exist; check the path"):
            way(tmp_path / "nosuch")
    assert main(["data", "show", str(tmp_path / "nosuch")]) == 1
    assert "nosuch does not exist" in capsys.readouterr().err


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
    result = {share: Manifest(tmp_path, {"de": share}) for share in (0.0, 0.05, 0.3, 1.0)}
    ids = {share: {u.id for u in m if u.language == "de"} for share, m in result.items()}
    assert ids[0.0] == set()
    assert ids[0.05] < ids[0.3] < ids[1.0]
    assert len(ids[1.0]) == 500
    assert abs(len(ids[0.3]) - 150) < 4 * (500 * 0.3 * 0.7) ** 0.5
    assert all((m.languages == "en").sum() == 500 for m in result.values())
    with pytest.raises(SprachbundError, match="holds no speech in fr"):
        Manifest(tmp_path, {"fr": 0.5})


def _old(directory):
    """As versions before checksums wrote it."""
    writer, _ = _write(directory, 6)
    writer.close()
    for path in directory.glob("*.sha256"):
        path.unlink()
    return directory


def test_checksums_are_those_that_sha256sum_reads(tmp_path):
    writer, _ = _write(tmp_path, 6)
    writer.close()
    lines = [
        line for path in sorted(tmp_path.glob("shard.*.sha256")) for line in path.read_text().splitlines()
    ]
    assert [line.split("  ")[1] for line in lines] == [
        "audio.00000.wav",
        "cuts.00000.jsonl",
        "audio.00001.wav",
        "cuts.00001.jsonl",
    ]
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    assert Manifest(tmp_path).check() == 2
    assert Manifest(_old(tmp_path / "old")).check() == 0


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.99])
def test_sound_that_is_cut_off_is_refused_when_the_corpus_is_opened(tmp_path, share):
    path = _old(tmp_path) / "audio.00000.wav"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    wanted = r"audio.00000.wav is (not a WAV|\d\.\d+ s long, not 0\.260 s as its head says)"
    with pytest.raises(SprachbundError, match=wanted) as caught:
        Manifest(tmp_path)
    assert "copy the corpus again" in str(caught.value)


def test_sound_that_is_cut_off_after_it_was_opened_is_refused_when_it_is_read(tmp_path):
    manifest = Manifest(_old(tmp_path))
    path = tmp_path / "audio.00000.wav"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SprachbundError, match=r"audio.00000.wav: utterance 'u3' .*copy the corpus again"):
        manifest.samples(3)
    path.unlink()
    with pytest.raises(SprachbundError, match=r"utterance 'u3' cannot be read"):
        manifest.samples(3)


def test_a_changed_byte_of_sound_or_text_is_told_from_the_checksum(tmp_path):
    writer, _ = _write(tmp_path, 6)
    writer.close()
    path = tmp_path / "audio.00001.wav"
    sound = bytearray(path.read_bytes())
    sound[100] ^= 1
    path.write_bytes(sound)
    manifest = Manifest(tmp_path)
    manifest.samples(0)
    with pytest.raises(SprachbundError, match=r"audio.00001.wav is damaged \(its checksum"):
        manifest.samples(5)
    with pytest.raises(SprachbundError, match=r"audio.00001.wav is damaged"):
        Manifest(tmp_path).check()
    cuts = tmp_path / "cuts.00000.jsonl"
    cuts.write_text(cuts.read_text().replace("text 2", "text 7"))
    with pytest.raises(
        SprachbundError, match=r"cuts.00000.jsonl is damaged.*delete shard.00000.sha256 if you"
    ):
        Manifest(tmp_path)
    (tmp_path / "shard.00000.sha256").unlink()
    assert Manifest(tmp_path)[2].text == "text 7"


def _changed(field, value):
    def change(lines):
        cut = json.loads(lines[1])
        if value is None:
            del cut[field]
        else:
            cut[field] = value
        lines[1] = json.dumps(cut)

    return change


def _cut_off(lines):
    lines[1] = lines[1][:80]


def _twice(lines):
    lines.insert(1, lines[0])


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (_changed("start", float("nan")), "line 2: start is nan"),
        (_changed("start", -0.5), "line 2: start is -0.5"),
        (_changed("duration", 1e300), r"line 2: duration is 1e\+300"),
        (_changed("duration", "1"), "line 2: duration is '1'"),
        (_changed("start", 100.0), "line 2: utterance 'u1' ends at 100.06"),
        (_changed("start", 0.0), "starts inside"),
        (_changed("id", "u0"), "line 2: id 'u0' is there already"),
        (_changed("id", None), "line 2: id is None"),
        (_changed("supervisions", []), r"line 2: supervisions is \[\]"),
        (_changed("supervisions", [{"text": 3}]), "line 2: supervisions.0.text is 3"),
        (_changed("supervisions", [{"text": "\ud800"}]), "line 2: supervisions.0.text"),
        (_cut_off, "line 2 is not JSON"),
        (_twice, "line 2: id 'u0' is there already"),
        (lambda lines: lines.clear(), "is empty"),
    ],
)
def test_a_line_that_is_no_cut_is_named(tmp_path, change, wanted):
    path = _old(tmp_path) / "cuts.00000.jsonl"
    lines = path.read_text().splitlines()
    change(lines)
    path.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(SprachbundError, match=rf"cuts.00000.jsonl.*{wanted}") as caught:
        Manifest(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_corpus_is_checked_by_command(tmp_path, capsys):
    writer, _ = _write(tmp_path / "a", 6)
    writer.close()
    _old(tmp_path / "b")
    assert main(["data", "check", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "a is whole: utterances 6, shards 2\n" in out
    assert "b is whole: utterances 6, shards 2; without checksums, only the lengths of 2 were checked" in out
    sound = tmp_path / "a" / "audio.00000.wav"
    sound.write_bytes(sound.read_bytes()[:-2] + b"\1\1")
    assert main(["data", "check", str(tmp_path)]) != 0
    assert "audio.00000.wav is damaged" in capsys.readouterr().err


def test_corpora_are_looked_for_at_any_depth(tmp_path):
    for folder in ("a", "b/train", "b/deep/er/dev", "own", "own/below"):
        _write(tmp_path / folder, 2)[0].close()
    (tmp_path / "linked").symlink_to(tmp_path / "b" / "train")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    _write(outside, 2)[0].close()
    (tmp_path / "z").symlink_to(outside)
    wanted = ["a", "b/deep/er/dev", "b/train", "own", "own/below", "z"]
    assert corpora_in(tmp_path) == [tmp_path / name for name in wanted]
    assert corpora_in(tmp_path, deepest=1) == [tmp_path / name for name in ("a", "linked", "own", "z")]
    (tmp_path / "b").rename(tmp_path / ".b")
    assert corpora_in(tmp_path) == [tmp_path / name for name in ("a", "own", "own/below", "z")]
    assert corpora_in(tmp_path / "a") == [tmp_path / "a"]
    assert corpora_in(tmp_path / "none") == []


def test_one_of_several_processes_compares_a_checksum(tmp_path, monkeypatch):
    writer, _ = _write(tmp_path, 6)
    writer.close()
    manifest, compared = Manifest(tmp_path), []
    monkeypatch.setattr(
        "sprachbund.data.manifest.check_sound", lambda folder, number: compared.append(number)
    )
    process = multiprocessing.get_context("fork").Process(target=manifest.samples, args=(0,))
    process.start()
    process.join()
    for index in range(6):
        manifest.samples(index)
        manifest.only([index]).samples(0)
    assert compared == [1]  # shard 0 was compared by the other process
    assert len(pickle.loads(pickle.dumps(manifest)).samples(0)) == 800


def test_a_name_that_is_no_shard_is_reported(tmp_path):
    _old(tmp_path)
    (tmp_path / "cuts.00000 (1).jsonl").write_text("")
    with pytest.raises(SprachbundError, match=r"cuts.00000 \(1\).jsonl is no shard"):
        Manifest(tmp_path)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{", "is not JSON"),
        ("[]", "a list"),
        ('{"hours": -1}', "hours"),
        ('{"languages": [3]}', "languages.0"),
    ],
)
def test_what_is_said_of_a_corpus_is_checked(tmp_path, text, wanted):
    (_old(tmp_path) / "dataset.json").write_text(text)
    with pytest.raises(SprachbundError, match=rf"dataset.json.*{wanted}.*copy it again, or delete it"):
        read_info(tmp_path)
