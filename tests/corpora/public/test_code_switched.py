"""Code-switched corpora: Fisher Spanish, NTUML2021, CS-FLEURS, Bangor Miami."""

import json
from pathlib import Path

import pytest

from sprachbund.corpora.public import PREPARATIONS, CorpusOptions
from sprachbund.corpora.public.fisher import embedded_words, strip_markup
from sprachbund.corpora.public.ntuml import english_terms
from sprachbund.corpora.public.talkbank import TranscriptLine, TranscriptWord, read_chat, spans
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.code_switch import switch_scores
from sprachbund.evaluation.hypotheses import make_line
from sprachbund.evaluation.lines import DecodingEvidence
from tests.corpora.public.trees import call, loudest_hz, melody, table, tone

CALL = "20050908_182943_22_fsp"


@pytest.fixture
def fisher(tmp_path: Path) -> Path:
    root = tmp_path / "fisher"
    call(root / "LDC2010S01" / "data" / "speech" / f"{CALL}.sph", 500, 900)
    rest = "native|spanish"
    table(
        root / "LDC2010T04" / "fisher_spa_tr" / "data" / "transcripts" / f"{CALL}.tdf",
        "file;unicode|channel;int|start;float|end;float|speaker;unicode|a|b|transcript;unicode",
        ";;MM sectionTypes|[None]",
        ";;MM sectionBoundaries|[0.0]",
        f"{CALL}.sph|0|0.5|1.0|Juan|{rest}|aló (( sí ))",
        f'{CALL}.sph|1|1.0|1.5|Ana|{rest}|y <foreign lang="English">which can be</foreign> bien',
        f'{CALL}.sph|1|1.5|2.5|Ana|{rest}|<foreign lang="English">okay</foreign> {{risa}}',
        f"{CALL}.sph|0|3.0|3.5|Juan|{rest}|{{laugh}}",
    )
    corpus = root / "fisher-callhome-corpus"
    for split in ("train", "dev", "dev2", "test"):
        lines = (f"{CALL} 1", f"{CALL} 2_3", f"{CALL} 3", f"{CALL} 4")
        table(corpus / "mapping" / f"fisher_{split}", *lines)
        for end in ["en"] if split == "train" else ["en.0", "en.1"]:
            table(
                corpus / "corpus" / "ldc" / f"fisher_{split}.{end}",
                "Hello.",
                f"And {end}.",
                "okay",
                "laughter",
            )
    return root


def test_fisher_joins_lines_hears_one_side_and_knows_embedded_words(fisher: Path, tmp_path: Path) -> None:
    summary = PREPARATIONS["fisher-spanish"].prepare(fisher, tmp_path / "out")
    manifest = Manifest(tmp_path / "out" / "dev")
    first, mixed, english = manifest
    assert first.text == "aló sí"
    assert first.custom["code_switched"] is False
    assert first.speaker == f"{CALL}-0"
    assert loudest_hz(manifest.samples(0)) == pytest.approx(500, abs=5)
    assert mixed.text == "y which can be bien okay"
    assert mixed.translations == {"en": "And en.0."}
    assert mixed.custom["references"] == {"en": ["And en.0.", "And en.1."]}
    assert mixed.custom["embedded_words"] == ["which can be", "okay"]
    assert mixed.custom["embedded_ranges"] == {"es": [[1, 4], [5, 6]]}
    assert "spans" not in mixed.custom, "when the words are heard is not known"
    assert mixed.duration_s == pytest.approx(1.5)
    assert loudest_hz(manifest.samples(1)) == pytest.approx(900, abs=5)
    assert english.custom["spans"] == [{"start_s": 0.0, "end_s": 1.0, "language": "en"}]
    assert summary.parts["train"].left_out == {"no text, no translation or no length": 1}
    assert "train: differs: found 4 of 138819 utterances" in summary.checks[0]


def test_fisher_takes_the_published_index_list(fisher: Path, tmp_path: Path) -> None:
    head = ",file,file_line_num,split,audio_file,audio_file_line_num,cs_type"
    table(fisher / "mapping_files" / "fisher_mapping.csv", head, f"0,fisher_train,1,dev,{CALL},2_3,cs")
    PREPARATIONS["fisher-spanish"].prepare(fisher, tmp_path / "out", CorpusOptions(splits=("train",)))
    said = [u.custom.get("experiment") for u in Manifest(tmp_path / "out" / "train")]
    assert said == [None, "dev", None]


def test_fisher_markup() -> None:
    assert strip_markup("(( sí )) <laugh> {risa} [ruido] + o*k #") == "sí ok"
    assert embedded_words('<foreign lang+"English">real <b>good /foreign> sí') == ["real good"]
    assert embedded_words('<foreign lan="English"> </foreign> no') == []


def test_fisher_names_what_is_missing_and_broken(fisher: Path, tmp_path: Path) -> None:
    mapping = fisher / "fisher-callhome-corpus" / "mapping" / "fisher_train"
    mapping.write_text(f"{CALL} 9\n{CALL} 1\n{CALL} 1\n{CALL} 1\n")
    with pytest.raises(
        SprachbundError, match=rf"fisher_train:1: '9' are not lines of {CALL}\.tdf \(4 lines\)"
    ):
        PREPARATIONS["fisher-spanish"].prepare(fisher, tmp_path / "out")
    (fisher / "LDC2010S01" / "data" / "speech" / f"{CALL}.sph").unlink()
    with pytest.raises(SprachbundError, match="LDC2010S01"):
        PREPARATIONS["fisher-spanish"].prepare(fisher, tmp_path / "out")


def test_ntuml_finds_english_terms_and_their_places() -> None:
    assert english_terms("這個 machine learning 的model") == {
        "code_switched": True,
        "languages": ["zh", "en"],
        "embedded_words": ["machine learning", "model"],
        "embedded_ranges": {"zh": [[2, 17], [18, 23]]},  # characters
    }
    assert english_terms("好") == {"code_switched": False}
    assert english_terms("okay")["code_switched"] is False


def test_ntuml(tmp_path: Path) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    data = tone(tmp_path / "a.wav", 700).read_bytes()
    rows = [
        {"audio": {"bytes": data, "path": "a.wav"}, "transcription": "這個 machine learning 的 model",
         "translation": "this machine learning model", "file": "a.wav"},
        {"audio": {"bytes": data, "path": "b.wav"}, "transcription": "好", "translation": "good", "file": "b.wav"},
        {"audio": {"bytes": data, "path": "c.wav"}, "transcription": "", "translation": "x", "file": "c.wav"},
    ]  # fmt: skip
    (tmp_path / "ntuml" / "data").mkdir(parents=True)
    for split in ("train", "dev", "test"):
        path = tmp_path / "ntuml" / "data" / f"{split}-00000-of-00001-abc.parquet"
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    summary = PREPARATIONS["ntuml2021"].prepare(tmp_path / "ntuml", tmp_path / "out")
    mixed, plain = Manifest(tmp_path / "out" / "dev")
    assert (mixed.language, mixed.translations) == ("zh", {"en": "this machine learning model"})
    assert mixed.custom["embedded_words"] == ["machine learning", "model"]
    assert mixed.custom["embedded_ranges"] == {"zh": [[2, 17], [18, 23]]}, "characters"
    assert mixed.custom["code_switched"] is True
    assert plain.custom["code_switched"] is False
    assert loudest_hz(Manifest(tmp_path / "out" / "dev").samples(0)) == pytest.approx(700, abs=5)
    assert summary.parts["test"].left_out == {"no transcript, no translation or no sound": 1}
    assert summary.checks[1].startswith("dev: differs: found 3 of 2997 utterances")
    long = tone(tmp_path / "long.wav", 700, 2.0).read_bytes()
    parquet.write_table(
        arrow.Table.from_pylist([{**rows[0], "audio": {"bytes": long[:20_000], "path": "a.wav"}}]), path
    )
    with pytest.raises(SprachbundError, match="cut off: the header promises"):
        PREPARATIONS["ntuml2021"].prepare(tmp_path / "ntuml", tmp_path / "cut")
    path.write_bytes(b"not parquet")
    with pytest.raises(SprachbundError, match=r"test-00000.*cannot be read"):
        PREPARATIONS["ntuml2021"].prepare(tmp_path / "ntuml", tmp_path / "other")


@pytest.fixture
def cs_fleurs(tmp_path: Path) -> Path:
    root = tmp_path / "cs"
    for part, text in (("read/test", "我 love 你"), ("xtts/train", "我 **love it** 你")):
        row = {
            "id": "7",
            "file_name": "audio/cmn/7.wav",
            "text": text,
            "language": "cmn-eng",
            "speaker": "s1",
        }
        other = {**row, "file_name": "audio/jpn/8.wav", "language": "jpn-eng"}
        (root / part).mkdir(parents=True)
        (root / part / "metadata.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(other)}\n")
        tone(root / part / "audio" / "cmn" / "7.wav")
        tone(root / part / "audio" / "jpn" / "8.wav")
    return root


def test_cs_fleurs_takes_marked_words_down(cs_fleurs: Path, tmp_path: Path) -> None:
    summary = PREPARATIONS["cs-fleurs"].prepare(cs_fleurs, tmp_path / "out", CorpusOptions(languages=("zh",)))
    (said,) = Manifest(tmp_path / "out" / "xtts_train")
    assert (said.text, said.language, said.speaker) == ("我 love it 你", "zh", "s1")
    assert said.custom["embedded_words"] == ["love it"]
    assert said.custom["embedded_ranges"] == {"zh": [[1, 7]]}
    assert said.custom["languages"] == ["zh", "en"]
    (plain,) = Manifest(tmp_path / "out" / "read_test")
    assert "embedded_words" not in plain.custom
    assert "read_test: unchecked, no published size speaks of zh" in summary.checks, (
        "17 hours are of all pairs"
    )
    whole = PREPARATIONS["cs-fleurs"].prepare(cs_fleurs, tmp_path / "whole")
    assert whole.checks[0].startswith("read_test: differs: found 0.0 of 17 hours")


def test_cs_fleurs_names_a_broken_line(cs_fleurs: Path, tmp_path: Path) -> None:
    with (cs_fleurs / "read" / "test" / "metadata.jsonl").open("a") as file:
        file.write('{"id": "9", "text": "x"}\n')
    with pytest.raises(SprachbundError, match=r"metadata\.jsonl:3: no file_name, language"):
        PREPARATIONS["cs-fleurs"].prepare(cs_fleurs, tmp_path / "out")


CHAT = (
    "@UTF8", "@Begin", "@Languages:|eng, spa", "@Participants:|MAR María Adult, OSE Other_Speaker Adult",
    "*MAR:|my sister_in_law (.) quiere@s:spa que@s:spa haga@s:spa you know . \x150_1000\x15",
    "%eng:|my sister-in-law wants me to do, you know.",
    "*OSE:|www .",
    "*MAR:|+, [- spa] (en)tonces <y si> [/] &=laugh para ver",
    "|Internet@s:eng&spa ? \x151000_2000\x15",
    "%eng:|then to see (.) Internet?",
    "*MAR:|yeah it records it +... \x152000_2800\x15",
    "*MAR:|and no times .",
    "@End",
)  # fmt: skip


@pytest.fixture
def miami(tmp_path: Path) -> Path:
    root = tmp_path / "miami"
    table(root / "beta" / "maria1.cha", *CHAT)
    table(root / "alpha" / "maria1.cha", "an older version")
    melody(root / "audio" / "maria1.mp3", [400, 800, 1200])
    return root


def test_chat_words_and_their_languages(miami: Path) -> None:
    mixed, other, spanish, english, _ = read_chat(miami / "beta" / "maria1.cha", "eng")
    assert mixed.text == "my sister in law quiere que haga you know."
    assert [w.language for w in mixed.words[:3]] == ["eng", "eng", "spa"]
    assert mixed.times_s == (0.0, 1.0)
    assert mixed.translation == "my sister-in-law wants me to do, you know."
    assert not other.transcribed
    assert spanish.text == "entonces y si para ver Internet?"
    assert (spanish.language, spanish.translation) == ("spa", "then to see Internet?")
    assert spanish.where.endswith("maria1.cha:8")
    assert [w.language for w in spanish.words[-2:]] == [None, None]
    assert english.number == 3


def test_miami_utterances_with_spans(miami: Path, tmp_path: Path) -> None:
    summary = PREPARATIONS["bangor-miami"].prepare(miami, tmp_path / "out")
    manifest = Manifest(tmp_path / "out" / "all")
    mixed, spanish, english = manifest
    assert (mixed.language, mixed.custom["main_language"]) == ("es", "en")
    assert mixed.text_in("en") == "my sister-in-law wants me to do, you know."
    assert [(s["language"], s["text"], s["word_ranges"]) for s in mixed.custom["spans"]] == [
        ("en", "my sister in law", {"es": [0, 4]}),  # "sister-in-law" in the translation: not the same words
        ("es", "quiere que haga", {"es": [4, 7]}),
        ("en", "you know.", {"es": [7, 9], "en": [6, 8]}),
    ]
    assert mixed.custom["spans_estimated"] is True
    (span,) = spanish.custom["spans"]
    assert (span["start_s"], span["end_s"], span["language"]) == (0.0, 1.0, "es")
    assert (span["text"], span["word_ranges"]) == (spanish.text, {"es": [0, 6]})
    assert spanish.custom["spans_estimated"] is False
    assert loudest_hz(manifest.samples(1)) == pytest.approx(800, abs=4), "cut out of an mp3"
    assert (english.language, english.translations) == ("en", {})
    assert summary.left_out == {"no times": 1, "not transcribed (a third party, or no words)": 1}


@pytest.mark.parametrize("name", ["cs-fleurs", "bangor-miami"])
def test_translations_that_a_corpus_does_not_have_are_not_there(
    cs_fleurs: Path, miami: Path, tmp_path: Path, name: str
) -> None:
    source = cs_fleurs if name == "cs-fleurs" else miami
    with pytest.raises(SprachbundError, match=f"holds nothing of {name} for de"):
        PREPARATIONS[name].prepare(source, tmp_path / "out", CorpusOptions(targets=("de",)))


def test_miami_takes_the_published_index_list(miami: Path, tmp_path: Path) -> None:
    head = "global_idx,split,file,file_line_num,offset,duration,cs_type"
    rows = ("0,test,maria1,0,0,1,cs", "1,train,maria1,2,1,1,mono", "2,n/a,maria1,3,2,0.8,n/a")
    table(miami / "miami_mapping.csv", head, *rows)
    summary = PREPARATIONS["bangor-miami"].prepare(miami, tmp_path / "out")
    assert {name: part.utterances for name, part in summary.parts.items()} == {
        "test": 1,
        "train": 1,
        "other": 1,
    }
    assert Manifest(tmp_path / "out" / "test")[0].custom["experiment"] == "cs"


def said(*words: tuple[str, str | None]) -> TranscriptLine:
    return TranscriptLine(
        where="here",
        number=0,
        speaker="MAR",
        words=[TranscriptWord(text=text, language=language) for text, language in words],
        times_s=None,
        language="eng",
        translation="",
        transcribed=True,
    )


def test_spans_share_time_by_letters() -> None:
    result = spans(said(("aaaa", "eng"), ("bb", None), ("cc", "spa")), 8.0, "es", "aaaa bb dd ee")
    assert result == [
        {
            "start_s": 0.0,
            "end_s": 6.0,
            "language": "en",
            "text": "aaaa bb",
            "word_ranges": {"es": [0, 2], "en": [0, 2]},
        },
        {
            "start_s": 6.0,
            "end_s": 8.0,
            "language": "es",
            "text": "cc",
            "word_ranges": {"es": [2, 3], "en": [2, 4]},
        },
    ]


def test_miami_gives_what_span_scores_need(miami: Path, tmp_path: Path) -> None:
    """From the transcripts to scores: the first output has two of the four words that translate the Spanish ones."""
    table(
        miami / "beta" / "maria1.cha",
        "@Languages:|eng, spa",
        "*MAR:|my sister quiere@s:spa que@s:spa haga@s:spa you know . \x150_1000\x15",
        "%eng:|my sister wants me to do, you know.",
        "@End",
    )
    PREPARATIONS["bangor-miami"].prepare(miami, tmp_path / "out")
    (mixed,) = Manifest(tmp_path / "out" / "all")
    outputs = [
        "my sister wants that she do you know",
        "my sister quiere que haga you know",
        "my sister you know",
    ]
    lines = [make_line(mixed, "en", text, DecodingEvidence(), "miami") for text in outputs]
    result = switch_scores(lines)
    assert (result.recalled.failed, result.recalled.evaluated) == (2, 12)
    assert (result.untranslated.failed, result.untranslated.evaluated) == (1, 3)
    assert (result.dropped.failed, result.dropped.evaluated) == (1, 3)
    assert result.near.evaluated == 3 * 8
    assert set(result.left_out.values()) == {0}


def test_miami_names_what_is_missing_and_broken(miami: Path, tmp_path: Path) -> None:
    table(miami / "beta" / "maria1.cha", "@Begin", "*MAR:|no head . \x150_1000\x15")
    with pytest.raises(SprachbundError, match=r"maria1\.cha:2: no @Languages before it"):
        PREPARATIONS["bangor-miami"].prepare(miami, tmp_path / "out")
    (miami / "audio" / "maria1.mp3").unlink()
    with pytest.raises(SprachbundError, match=r"holds no recordings .*bangortalk"):
        PREPARATIONS["bangor-miami"].prepare(miami, tmp_path / "out")
