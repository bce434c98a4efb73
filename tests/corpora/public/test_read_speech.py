"""Corpora of read sentences: CoVoST 2, CVSS, FLEURS, and the IWSLT sets that are tables of clips."""

import tarfile
from pathlib import Path

import pytest

from sprachbund.corpora.public import PREPARATIONS, CorpusOptions
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from tests.corpora.public.trees import loudest_hz, table, tone


def utterances(folder: Path) -> dict[str, tuple[str, dict[str, str]]]:
    return {u.id: (u.text, dict(u.translations)) for u in Manifest(folder)}


def common_voice(root: Path, code: str, *clips: str) -> None:
    rows = [f'speaker{n}|{clip}.mp3|Satz "{n}"|2|0' for n, clip in enumerate(clips)]
    table(root / "cv-corpus" / code / "validated.tsv", "client_id|path|sentence|up_votes|down_votes", *rows)
    for n, clip in enumerate(clips):
        tone(root / "cv-corpus" / code / "clips" / f"{clip}.mp3", 400 + 100 * n)


@pytest.fixture
def covost(tmp_path: Path) -> Path:
    root = tmp_path / "covost"
    common_voice(root, "en", "a", "b", "c", "d", "e")
    head = "path|translation|split"
    table(root / "tt" / "covost_v2.en_de.tsv", head, "a.mp3|A|train", "b.mp3|B|train_covost", "c.mp3|C|test",
          "d.mp3|D|validated", "gone.mp3|G|dev")  # fmt: skip
    table(root / "tt" / "covost_v2.en_zh-CN.tsv", head, "c.mp3|丙|test", "a.mp3|甲|train", "b.mp3||train")
    return root


def test_covost_brings_translations_of_a_clip_together(covost: Path, tmp_path: Path) -> None:
    summary = PREPARATIONS["covost2"].prepare(covost, tmp_path / "out", CorpusOptions())
    train, test = utterances(tmp_path / "out" / "train"), utterances(tmp_path / "out" / "test")
    assert train == {"a": ('Satz "0"', {"de": "A", "zh": "甲"}), "b": ('Satz "1"', {"de": "B"})}
    assert test == {"c": ('Satz "2"', {"de": "C", "zh": "丙"})}
    manifest = Manifest(tmp_path / "out" / "train")
    assert manifest[0].speaker == "speaker0"
    assert loudest_hz(manifest.samples(1)) == pytest.approx(500, abs=5)
    assert summary.left_out == {
        "no translation": 1,
        "in no split of version 2": 1,
        "clip is not in validated.tsv": 1,
    }
    assert "train en>de: differs: found 2 of 289430 utterances" in summary.checks[0]


def test_common_voice_may_be_a_link(covost: Path, tmp_path: Path) -> None:
    voices = covost / "cv-corpus"
    voices.rename(tmp_path / "elsewhere")
    voices.mkdir()
    (voices / "en").symlink_to(tmp_path / "elsewhere" / "en", target_is_directory=True)
    for name in ("again", "en"):
        (covost / "tt" / name).symlink_to(covost, target_is_directory=True)  # leads in a circle
    PREPARATIONS["covost2"].prepare(covost, tmp_path / "out", CorpusOptions(targets=("de",)))
    assert set(utterances(tmp_path / "out" / "train")) == {"a", "b"}


def test_covost_reads_the_tables_of_the_makers_script(covost: Path, tmp_path: Path) -> None:
    for split, clip in (("train", "d"), ("dev", "e"), ("test", "c")):
        rows = ["path|sentence|translation|client_id", f"{clip}.mp3|Said {clip}|Gesagt|x"]
        table(covost / "tt" / f"covost_v2.en_de.{split}.tsv", *rows)
    options = CorpusOptions(languages=("en",), targets=("de",), splits=("train", "dev"))
    summary = PREPARATIONS["covost2"].prepare(covost, tmp_path / "out", options)
    assert {name: part.utterances for name, part in summary.parts.items()} == {"train": 1, "dev": 1}
    assert utterances(tmp_path / "out" / "train") == {"d": ("Said d", {"de": "Gesagt"})}


def test_covost_names_what_is_missing_and_broken(covost: Path, tmp_path: Path) -> None:
    table(covost / "tt" / "covost_v2.fr_en.tsv", "path|translation|split", "x.mp3|X|train")
    with pytest.raises(
        SprachbundError, match=r"no folder fr/clips; get Common Voice version 4 in fr from http"
    ):
        PREPARATIONS["covost2"].prepare(covost, tmp_path / "out")
    table(covost / "tt" / "covost_v2.en_de.tsv", "path|translation|split", "a.mp3|A|train", "b.mp3|train")
    with pytest.raises(SprachbundError, match=r"covost_v2\.en_de\.tsv:3: 2 fields, not 3"):
        PREPARATIONS["covost2"].prepare(covost, tmp_path / "out", CorpusOptions(languages=("en",)))


def test_cvss_takes_english_from_its_tables_and_the_rest_from_common_voice(tmp_path: Path) -> None:
    root = tmp_path / "cvss"
    common_voice(root, "sv-SE", "a", "b", "c")
    for split, row in (("train", "a.mp3|twenty one"), ("dev", "b.mp3|b"), ("test", "z.mp3|z")):
        table(root / "cvss_c_sv_en_v1.0" / f"{split}.tsv", row)
    summary = PREPARATIONS["cvss"].prepare(root, tmp_path / "out")
    assert utterances(tmp_path / "out" / "train") == {"a": ('Satz "0"', {"en": "twenty one"})}
    assert Manifest(tmp_path / "out" / "train")[0].language == "sv"
    assert summary.left_out == {"clip is not in validated.tsv": 1}
    with pytest.raises(SprachbundError, match=r"holds nothing of cvss for de"):
        PREPARATIONS["cvss"].prepare(root, tmp_path / "german", CorpusOptions(targets=("de",)))
    (root / "cvss_c_sv_en_v1.0" / "dev.tsv").unlink()
    with pytest.raises(SprachbundError, match=r"dev\.tsv is missing .*cvss"):
        PREPARATIONS["cvss"].prepare(root, tmp_path / "other")


def fleurs_language(root: Path, code: str, word: str, hz: float, *, packed: bool) -> None:
    folder = root / "data" / code
    for split, numbers in (("train", (1, 2, 2)), ("dev", (3,)), ("test", (4,))):
        rows, files = [], []
        for take, number in enumerate(numbers):
            name = f"{split}{take}.wav"
            rows.append(f"{number}|{name}|{word} {number}.|{word} {number}|x|4800|FEMALE")
            files.append(tone(folder / "audio" / split / name, hz + 100 * take))
        table(folder / f"{split}.tsv", *rows)
        if packed:
            with tarfile.open(folder / "audio" / f"{split}.tar.gz", "w:gz") as tar:
                for file in reversed(files):
                    tar.add(file, f"{split}/{file.name}")
                    file.unlink()
                files[0].parent.rmdir()


@pytest.fixture
def fleurs(tmp_path: Path) -> Path:
    fleurs_language(tmp_path / "fleurs", "de_de", "Satz", 400, packed=True)
    fleurs_language(tmp_path / "fleurs", "en_us", "sentence", 900, packed=False)
    fleurs_language(tmp_path / "fleurs", "cmn_hans_cn", "句", 1500, packed=False)
    return tmp_path / "fleurs"


def test_fleurs_translates_every_language_by_the_others(fleurs: Path, tmp_path: Path) -> None:
    options = CorpusOptions(languages=("deu", "zh"))
    summary = PREPARATIONS["fleurs"].prepare(fleurs, tmp_path / "out", options)
    said = utterances(tmp_path / "out" / "train")
    assert said["de_de-train1"] == ("Satz 2.", {"en": "sentence 2.", "zh": "句 2."})
    assert said["cmn_hans_cn-train0"] == ("句 1.", {"de": "Satz 1.", "en": "sentence 1."})
    assert len(said) == 6
    manifest = Manifest(tmp_path / "out" / "train")
    pitches = {u.id: loudest_hz(manifest.samples(n)) for n, u in enumerate(manifest)}
    assert pitches["de_de-train0"] == pytest.approx(400, abs=5), "read from the archive, in another order"
    assert pitches["de_de-train2"] == pytest.approx(600, abs=5)
    assert summary.parts["dev"].utterances == 2


def test_fleurs_refuses_sound_that_is_cut_off(fleurs: Path, tmp_path: Path) -> None:
    archive, short = fleurs / "data" / "de_de" / "audio" / "train.tar.gz", tmp_path / "short.wav"
    short.write_bytes(tone(short, 400, 2.0).read_bytes()[:20_000])
    with tarfile.open(archive, "w:gz") as tar:
        for take in range(3):
            tar.add(short, f"train/train{take}.wav")
    with pytest.raises(
        SprachbundError, match=r"train\.tar\.gz:train/train.\.wav: cut off: .*; copy or record it again"
    ):
        PREPARATIONS["fleurs"].prepare(fleurs, tmp_path / "out", CorpusOptions(languages=("de",)))


def test_fleurs_names_sound_that_is_missing_and_tables_that_are_broken(fleurs: Path, tmp_path: Path) -> None:
    path = fleurs / "data" / "de_de" / "train.tsv"
    path.write_text(path.read_text() + "9\tgone.wav\tWeg.\tweg\tw\t1\tMALE\n")
    with pytest.raises(SprachbundError, match=r"train\.tsv:4: gone\.wav is not in .*train\.tar\.gz"):
        PREPARATIONS["fleurs"].prepare(fleurs, tmp_path / "out", CorpusOptions(languages=("de",)))
    archive = path.parent / "audio" / "train.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(SprachbundError, match=r"train\.tar\.gz.* is damaged"):
        PREPARATIONS["fleurs"].prepare(fleurs, tmp_path / "third", CorpusOptions(languages=("de",)))
    path.write_text("1\tx.wav\n")
    with pytest.raises(SprachbundError, match=r"train\.tsv:1: 2 fields, not 7"):
        PREPARATIONS["fleurs"].prepare(fleurs, tmp_path / "other", CorpusOptions(languages=("de",)))


def test_bemba(tmp_path: Path) -> None:
    bem = tmp_path / "bigc" / "data" / "bem"
    head = "pair_id|image|sentence_id|image_id|audio_id|sentence|translation|speaker_id|gender|duration"
    for split in ("train", "valid", "test"):
        table(
            bem / "splits" / f"{split}.tsv", head, f"15.0|1|2|7.jpg|{split}.wav|nafwala|he wears|152|female|4"
        )
        tone(bem / "audio" / f"{split}.wav")
    summary = PREPARATIONS["iwslt-bem"].prepare(tmp_path / "bigc", tmp_path / "out")
    assert set(summary.parts) == {"train", "valid", "test"}
    said = Manifest(tmp_path / "out" / "valid")[0]
    assert (said.language, said.text, said.translations) == ("bem", "nafwala", {"en": "he wears"})
    assert said.custom["gender"] == "female"
    table(bem / "splits" / "train.tsv", "audio_id|sentence", "a.wav|x")
    with pytest.raises(SprachbundError, match=r"train\.tsv:1: no column 'translation', 'speaker_id'"):
        PREPARATIONS["iwslt-bem"].prepare(tmp_path / "bigc", tmp_path / "other")


def test_estonian(tmp_path: Path) -> None:
    root = tmp_path / "est"
    for split in ("train", "dev"):
        row = f"talk/talk_0_{split}.flac|Ja nüüd|And now"
        table(root / f"{split}.tsv", "audio|Estonian|English", row, "talk/x.flac||nothing said")
        tone(root / "audio" / "talk" / f"talk_0_{split}.flac")
    summary = PREPARATIONS["iwslt-est"].prepare(root, tmp_path / "out")
    assert utterances(tmp_path / "out" / "dev") == {"talk_0_dev": ("Ja nüüd", {"en": "And now"})}
    assert summary.left_out == {"no transcript": 2}
    assert any(line.startswith("dev: differs: found 2 of 1601 utterances") for line in summary.checks)
    (root / "audio").rename(root / "elsewhere")
    with pytest.raises(SprachbundError, match=r"audio is missing \(iwslt2025_est2eng_data_audio\.tar"):
        PREPARATIONS["iwslt-est"].prepare(root, tmp_path / "other")


def test_irish_has_no_transcripts_and_its_last_test_no_translations(tmp_path: Path) -> None:
    root = tmp_path / "gle"
    for split in ("train", "dev", "test-2023", "test-2024"):
        table(root / split / "stamped.tsv", "wav/iwslt2023_ga-eng_z0001_000.wav|0|0.3")
        tone(root / split / "wav" / "iwslt2023_ga-eng_z0001_000.wav")
        if split != "test-2024":
            table(root / split / "txt" / f"{split.split('-')[0]}.eng", "Good morning.")
    summary = PREPARATIONS["iwslt-gle"].prepare(root, tmp_path / "out")
    said = Manifest(tmp_path / "out" / "test-2023")[0]
    assert (said.language, said.text, said.translations) == ("ga", "", {"en": "Good morning."})
    assert summary.parts["test-2024"].left_out == {"no translation is published": 1}
    assert not (tmp_path / "out" / "test-2024" / "dataset.json").exists()
    table(root / "dev" / "txt" / "dev.eng", "One.", "Two.")
    with pytest.raises(SprachbundError, match=r"dev\.eng has 2 lines, .*stamped\.tsv 1"):
        PREPARATIONS["iwslt-gle"].prepare(root, tmp_path / "other")
