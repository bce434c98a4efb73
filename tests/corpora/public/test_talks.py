"""Corpora cut out of long recordings: MuST-C, Multilingual TEDx, Europarl-ST, Tunisian Arabic."""

from pathlib import Path

import pytest

from sprachbund.corpora.public import PREPARATIONS, CorpusOptions
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from tests.corpora.public.trees import call, loudest_hz, melody, table


def talk(root: Path, pair: str, split: str, name: str, *texts: tuple[float, str, str]) -> None:
    spoken, target = pair.split("-")
    folder = root / pair / "data" / split / "txt"
    stem = name.split(".")[0]
    segments = [
        f"- {{duration: 0.500000, offset: {at:.6f}, rW: 9, uW: 0, speaker_id: spk.1, wav: {stem}.wav}}"
        for at, _, _ in texts
    ]
    table(folder / f"{split}.yaml", *segments)
    table(folder / f"{split}.{spoken}", *(said for _, said, _ in texts))
    if target != spoken:
        table(folder / f"{split}.{target}", *(said for _, _, said in texts))
    melody(root / pair / "data" / split / "wav" / name, [400, 800, 1200])


def test_mustc_cuts_talks(tmp_path: Path) -> None:
    root = tmp_path / "mustc"
    talk(root, "en-de", "train", "ted_767.wav", (0.2, "one", "eins"), (1.2, "two", "zwei"))
    talk(root, "en-de", "tst-COMMON", "ted_1.wav", (2.2, "three", "drei"))
    talk(root, "en-fr", "train", "ted_767.wav", (1.2, "two", "deux"), (2.2, "three", "trois"))
    summary = PREPARATIONS["mustc"].prepare(root, tmp_path / "out")
    manifest = Manifest(tmp_path / "out" / "train")
    said = {u.text: (dict(u.translations), loudest_hz(manifest.samples(n))) for n, u in enumerate(manifest)}
    assert said["one"] == ({"de": "eins"}, pytest.approx(400, abs=4))
    assert said["two"][1] == pytest.approx(800, abs=4)
    assert manifest[0].speaker == "spk.1"
    assert set(summary.parts) == {"train", "tst-COMMON"}


def test_shared_segments_of_one_talk_are_one_utterance(tmp_path: Path) -> None:
    root = tmp_path / "mtedx"
    talk(root, "es-en", "valid", "abc.flac", (0.2, "uno", "one"), (1.2, "dos", "two"))
    talk(root, "es-fr", "valid", "abc.flac", (1.2, "dos", "deux"))
    talk(root, "es-es", "valid", "abc.flac", (2.2, "tres", ""))
    summary = PREPARATIONS["mtedx"].prepare(root, tmp_path / "out")
    said = {u.text: dict(u.translations) for u in Manifest(tmp_path / "out" / "valid")}
    assert said == {"uno": {"en": "one"}, "dos": {"en": "two", "fr": "deux"}, "tres": {}}
    assert summary.parts["valid"].utterances == 3


def test_segment_lists_may_take_several_lines(tmp_path: Path) -> None:
    root = tmp_path / "mtedx"
    talk(root, "es-en", "test", "abc.flac", (0.2, "uno", "one"), (1.2, "dos", "two"))
    entries = (
        "- duration: 0.5",
        "  offset: 0.2",
        "  wav: abc.wav",
        "- duration: 0.5",
        "  offset: 1.2",
        "  wav: abc.wav",
    )
    table(root / "es-en" / "data" / "test" / "txt" / "test.yaml", *entries)
    PREPARATIONS["mtedx"].prepare(root, tmp_path / "out")
    manifest = Manifest(tmp_path / "out" / "test")
    assert [u.text for u in manifest] == ["uno", "dos"]
    assert loudest_hz(manifest.samples(1)) == pytest.approx(800, abs=4)


def test_mustc_names_lists_that_do_not_fit(tmp_path: Path) -> None:
    root = tmp_path / "mustc"
    talk(root, "en-de", "dev", "ted_1.wav", (0.2, "one", "eins"), (1.2, "two", "zwei"))
    table(root / "en-de" / "data" / "dev" / "txt" / "dev.de", "eins")
    with pytest.raises(SprachbundError, match=r"dev\.de has 1 lines, .*dev\.en 2"):
        PREPARATIONS["mustc"].prepare(root, tmp_path / "out")
    table(root / "en-de" / "data" / "dev" / "txt" / "dev.de", "eins", "zwei")
    table(root / "en-de" / "data" / "dev" / "txt" / "dev.yaml", "- {duration: 1, wav: x.wav}", "- {}")
    with pytest.raises(SprachbundError, match=r"dev\.yaml:1: no offset in"):
        PREPARATIONS["mustc"].prepare(root, tmp_path / "out")
    table(root / "en-de" / "data" / "dev" / "txt" / "dev.yaml", "- {duration: 1, offset: 0, wav: x.wav}")
    with pytest.raises(SprachbundError, match=r"dev\.en has 2 lines, .*dev\.yaml 1 segments"):
        PREPARATIONS["mustc"].prepare(root, tmp_path / "out")
    (root / "en-de" / "data" / "dev" / "txt" / "dev.yaml").unlink()
    with pytest.raises(SprachbundError, match=r"dev\.yaml is missing .*must-c"):
        PREPARATIONS["mustc"].prepare(root, tmp_path / "out")


def debate(root: Path, spoken: str, target: str, *segments: tuple[str, str, str]) -> None:
    folder = root / "v1.1" / spoken / target / "train"
    table(folder / "segments.lst", *(place for place, _, _ in segments))
    table(folder / f"segments.{spoken}", *(said for _, said, _ in segments))
    table(folder / f"segments.{target}", *(said for _, _, said in segments))
    table(folder / "speeches.lst", "en.20080924.31.3-243")


def test_europarl_brings_targets_together(tmp_path: Path) -> None:
    root = tmp_path / "europarl"
    name = "en.20080924.31.3-243"
    debate(root, "en", "de", (f"{name} 0.20 0.70", "one", "eins"), (f"{name} 1.20 1.70", "two", "zwei"))
    debate(root, "en", "fr", (f"{name} 1.20 1.70", "two", "deux"), (f"{name} 2.20 2.20", "three", "trois"))
    melody(root / "v1.1" / "en" / "audios" / f"{name}.flac", [400, 800, 1200])
    summary = PREPARATIONS["europarl-st"].prepare(root, tmp_path / "out")
    manifest = Manifest(tmp_path / "out" / "train")
    said = {u.text: (dict(u.translations), loudest_hz(manifest.samples(n))) for n, u in enumerate(manifest)}
    assert said == {
        "one": ({"de": "eins"}, pytest.approx(400, abs=4)),
        "two": ({"de": "zwei", "fr": "deux"}, pytest.approx(800, abs=4)),
    }
    assert summary.left_out == {"segment of no length": 1}


def test_europarl_names_a_broken_line_and_missing_recordings(tmp_path: Path) -> None:
    root = tmp_path / "europarl"
    debate(root, "en", "de", ("en.1 zero 1", "one", "eins"))
    with pytest.raises(SprachbundError, match=r"audios is missing \(recordings in en\)"):
        PREPARATIONS["europarl-st"].prepare(root, tmp_path / "out")
    (root / "v1.1" / "en" / "audios").mkdir()
    with pytest.raises(
        SprachbundError, match=r"segments\.lst:1: 'en\.1 zero 1' is not recording, start and end"
    ):
        PREPARATIONS["europarl-st"].prepare(root, tmp_path / "out")
    debate(root, "en", "de", ("en.1 0 1", "one", "eins"))
    with pytest.raises(SprachbundError, match=r"segments\.lst:1: .*en\.1\.m4a does not exist"):
        PREPARATIONS["europarl-st"].prepare(root, tmp_path / "out")


@pytest.fixture
def tunisian(tmp_path: Path) -> Path:
    root = tmp_path / "aeb"
    data = root / "LDC2022E01" / "data"
    for split, number in (("train", 1), ("dev", 2), ("test1", 3)):
        name = f"2016_1_{number}_A"
        table(root / "iwslt22-dialect" / f"{split}.file_id.txt", name)
        melody(data / "audio" / "ta" / f"{name}.wav", [400, 800], rate_hz=8000).rename(
            data / "audio" / "ta" / f"{name}.sph"
        )
        table(data / "transcripts" / "ta" / f"{name}.aeb.tsv",
              "0.200|0.700|s1|O/أهلا U/بيك", "1.200|1.700|s1|لا", "1.8|1.9|s1|نعم")  # fmt: skip
        table(data / "translations" / "ta" / f"{name}.eng.tsv",
              "0.200|0.700|s1|#Hello %pw (( you ))", "1.200|1.700|s1|No.", "1.8|1.9|s1|Yes")  # fmt: skip
    table(root / "iwslt22-dialect" / "exclude-utterance.txt", "2016_1_1_A 1.200 1.700")
    return root


def test_tunisian_from_the_package_and_the_makers_lists(tunisian: Path, tmp_path: Path) -> None:
    summary = PREPARATIONS["iwslt-aeb"].prepare(tunisian, tmp_path / "out")
    manifest = Manifest(tmp_path / "out" / "train")
    assert (manifest[0].text, manifest[0].translations) == ("أهلا بيك", {"en": "Hello you"})
    assert loudest_hz(manifest.samples(0)) == pytest.approx(400, abs=4)
    assert manifest[0].language == "aeb"
    assert summary.parts["train"].left_out == {"faulty by the makers' list": 1}
    assert summary.parts["dev"].utterances == 3
    assert "train: differs: found 2 of 202499" in summary.checks[0], "the makers do not count the faulty one"


def test_tunisian_from_the_makers_stm(tunisian: Path, tmp_path: Path) -> None:
    for split, number in (("train", 1), ("dev", 2), ("test1", 3)):
        line = f"2016_1_{number}_A|1|s1|1.200|1.700|"
        table(tunisian / "stm" / f"asr-aeb.norm.{split}.stm", f"{line}<aeb>|لا")
        table(tunisian / "stm" / f"st-aeb2eng.norm.{split}.stm", f"{line}<eng>|no")
    PREPARATIONS["iwslt-aeb"].prepare(tunisian, tmp_path / "out", CorpusOptions(splits=("dev",)))
    manifest = Manifest(tmp_path / "out" / "dev")
    assert (manifest[0].text, manifest[0].translations) == ("لا", {"en": "no"})
    assert loudest_hz(manifest.samples(0)) == pytest.approx(800, abs=4)
    table(tunisian / "stm" / "st-aeb2eng.norm.dev.stm", "2016_1_2_A|1|s1|9|10|<eng>|no")
    with pytest.raises(SprachbundError, match=r"dev\.stm:1: not the same utterance"):
        PREPARATIONS["iwslt-aeb"].prepare(tunisian, tmp_path / "other")


def test_tunisian_names_missing_lists_and_broken_tables(tunisian: Path, tmp_path: Path) -> None:
    data = tunisian / "LDC2022E01" / "data"
    table(data / "transcripts" / "ta" / "2016_1_1_A.aeb.tsv", "0.2|0.7|s1|x", "soon|0.7|s1|x")
    with pytest.raises(SprachbundError, match=r"2016_1_1_A\.aeb\.tsv:2: \['soon', '0\.7'\] are not times"):
        PREPARATIONS["iwslt-aeb"].prepare(tunisian, tmp_path / "out")
    (tunisian / "iwslt22-dialect" / "dev.file_id.txt").unlink()
    with pytest.raises(SprachbundError, match=r"no dev\.file_id\.txt; get the lists from https://github"):
        PREPARATIONS["iwslt-aeb"].prepare(tunisian, tmp_path / "out")


def test_calls_are_read_one_channel_at_a_time(tmp_path: Path) -> None:
    from sprachbund.corpora.public.items import Cut
    from sprachbund.corpora.public.preparation import Recordings

    path = call(tmp_path / "call.sph", 500, 900)
    with Recordings() as recordings:
        for channel, hz in enumerate((500, 900)):
            samples = recordings.samples(Cut(path=path, start_s=1, duration_s=1.5, channel=channel))
            assert loudest_hz(samples) == pytest.approx(hz, abs=3)
            assert len(samples) == pytest.approx(24_000, abs=2)
        with pytest.raises(SprachbundError, match="has 2 channels"):
            recordings.samples(Cut(path=path, channel=2))
