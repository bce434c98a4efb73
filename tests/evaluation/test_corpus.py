import json
import shutil

import pytest

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.run import open_corpus


@pytest.fixture
def copy(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "copy")
    return tmp_path / "copy"


def change(path, number, make):
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[number - 1] = make(lines[number - 1])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def said(**values):
    """Puts values into the supervision of a line."""

    def changed(line):
        cut = json.loads(line)
        cut["supervisions"][0] |= {"language": "en", **values}
        return json.dumps(cut, ensure_ascii=False)

    return changed


def test_a_whole_corpus_opens(corpus):
    assert len(open_corpus(corpus)) == 13


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda line: line[:30], r"cuts\.00001\.jsonl:2: not an utterance"),
        (lambda line: "[]", r"cuts\.00001\.jsonl:2: not an utterance"),
        (lambda line: line.replace('"duration"', '"length"'), "2: not an utterance .lacks 'duration'"),
        (
            lambda line: json.dumps({**json.loads(line), "id": "u003"}),
            r"2: id 'u003' stands at cuts\.00000\.jsonl:4",
        ),
        (lambda line: "\ufeff" + line, "2: not an utterance .it begins with a byte order mark"),
        (said(language="klingonish"), "2: not an utterance .'klingonish' is no language tag"),
        (said(custom={"translations": {"de": "ja", "ru": " "}}), "2: .*its reference into ru is empty"),
        (said(custom={"translations": {"deutschland": "ja"}}), "2: .*'deutschland' is no language tag"),
        (said(custom={"translations": ["ja"]}), r"2: .*custom\.translations: Input should be a valid dict"),
        (said(custom={"translations": {"de": 5}}), r"2: .*translations\.de: Input should be a valid string"),
        (said(custom=[5]), r"2: .*custom: Input should be"),
        (said(custom={"spans": [{"start_s": 0.0}]}), "2: .*lacks 'language'"),
        (said(custom={"spans": [{"language": "klingonish"}]}), "2: .*'klingonish' is no language tag"),
        (said(custom={"spans": [{"language": "de", "start_s": 2, "end_s": 1}]}), "2: .*a span from 2 to 1 s"),
        (
            said(custom={"spans": [{"language": "de", "word_ranges": {"en": [90, 91]}}, {"language": "en"}]}),
            r"2: .*a span's word range \[90, 91\] is not in its reference into en",
        ),
        (lambda line: json.dumps({**json.loads(line), "start": 1e4}), r"audio\.00001\.wav: holds"),
    ],
)
def test_faults_are_named_with_file_and_line(copy, make, message):
    change(copy / "cuts.00001.jsonl", 2, make)
    with pytest.raises(SprachbundError, match=message):
        open_corpus(copy)


def test_missing_cut_off_and_other_sound(copy):
    audio = copy / "audio.00000.wav"
    whole = audio.read_bytes()
    audio.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SprachbundError, match=r"audio\.00000\.wav: holds"):
        open_corpus(copy)
    audio.write_bytes(b"not sound")
    with pytest.raises(SprachbundError, match="no sound"):
        open_corpus(copy)
    audio.unlink()
    with pytest.raises(SprachbundError, match=r"no sound .No such file"):
        open_corpus(copy)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (b"\r\n", r"cuts\.00000\.jsonl:2: mixed line ends \(1 CR LF, 7 LF\)"),
        (b"\r", r"cuts\.00000\.jsonl:2: mixed"),
    ],
)
def test_mixed_line_ends(copy, ends, message):
    path = copy / "cuts.00000.jsonl"
    first, second, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, second[:-1] + ends, *rest]))
    with pytest.raises(SprachbundError, match=message):
        open_corpus(copy)
