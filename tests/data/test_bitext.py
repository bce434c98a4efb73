from pathlib import Path

import pytest

from sprachbund.data.bitext import Bitext, SentencePair, read_bitext
from sprachbund.errors import SprachbundError

TMX = """<?xml version="1.0"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="en"/><body>
<tu><tuv xml:lang="EN-GB"><seg>Press <bpt i="1">&lt;b></bpt>one<ept i="1">&lt;/b></ept> &amp; <hi>wait</hi>.</seg></tuv>
    <tuv xml:lang="de"><seg>Drücken Sie
 die Eins.</seg></tuv></tu>
<tu><tuv lang="en_US"><seg>Hello</seg></tuv><tuv xml:lang="fr"><seg>Bonjour</seg></tuv></tu>
<tu><tuv xml:lang="en-US"><seg>color</seg></tuv><tuv xml:lang="en"><seg>colour</seg></tuv>
    <tuv xml:lang="de"><seg>Farbe</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg/></tuv><tuv xml:lang="de"><seg>Nichts</seg></tuv></tu>
</body></tmx>
"""


def texts(bitext: Bitext) -> list[tuple[str, str]]:
    return [(pair.source, pair.target) for pair in bitext.pairs]


@pytest.fixture
def write(tmp_path: Path):  # type: ignore[no-untyped-def]
    def written(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return written


def test_a_table(write) -> None:  # type: ignore[no-untyped-def]
    path = write("a.tsv", '\ufeffdomain\tde\ten\nx\t"Ja,  gern\t“Yes”\r\ny\tZwei\u2028Zeilen\ttwo lines\n')
    result = read_bitext([path], "en", "de")
    assert texts(result) == [("“Yes”", '"Ja, gern'), ("two lines", "Zwei Zeilen")]
    assert result.pairs[1] == SentencePair(source="two lines", target="Zwei Zeilen", where=f"{path}:3")
    assert (len(result), result.faults) == (2, ())


def test_faults_end_it_or_are_counted_and_named(write) -> None:  # type: ignore[no-untyped-def]
    path = write("a.tsv", "en\tde\none\teins\ntwo\n\tdrei\nfour\tvier\tquatre\n\t\n")
    with pytest.raises(
        SprachbundError, match=r"4 of 5 pairs .* the first: .*a.tsv:3: has 1 fields where the header"
    ):
        read_bitext([path], "en", "de")
    result = read_bitext([path], "en", "de", skip_bad=True)
    assert texts(result) == [("one", "eins")]
    assert [str(fault).removeprefix(str(path)) for fault in result.faults] == [
        ":3: has 1 fields where the header has 2",
        ":4: the source side is empty",
        ":5: has 3 fields where the header has 2",
        ":6: the source and the target side is empty",
    ]


def test_moses_files(write) -> None:  # type: ignore[no-untyped-def]
    # A line separator or a form feed inside a line ends none: only line feeds do.
    one, other = write("c.en", "a\u2028b\nc\x0cd\n e  f\n"), write("c.de", "x\ny\r\nz")
    assert texts(read_bitext([one, other], "en", "de")) == [("a b", "x"), ("c d", "y"), ("e f", "z")]


def test_unequal_sides_are_refused_with_both_counts(write) -> None:  # type: ignore[no-untyped-def]
    one, other = write("c.en", "a\nb\nc\n"), write("c.de", "x\ny\n")
    for skip in (False, True):
        with pytest.raises(SprachbundError, match=r"c.en has 3 lines and .*c.de has 2"):
            read_bitext([one, other], "en", "de", skip_bad=skip)


def test_an_empty_line_of_one_side_is_a_fault_and_moves_nothing(write) -> None:  # type: ignore[no-untyped-def]
    one, other = write("c.en", "a\n\nc\n"), write("c.de", "x\ny\nz\n")
    result = read_bitext([one, other], "en", "de", skip_bad=True)
    assert texts(result) == [("a", "x"), ("c", "z")]
    assert str(result.faults[0]) == f"{one}:2: the source side is empty"


def test_a_translation_memory(write) -> None:  # type: ignore[no-untyped-def]
    path = write("m.tmx", TMX)
    result = read_bitext([path], "en", "de", skip_bad=True)
    assert texts(result) == [("Press one & wait.", "Drücken Sie die Eins."), ("colour", "Farbe")]
    assert [fault.reason for fault in result.faults] == ["has no text in de", "the source side is empty"]
    assert result.faults[0].where == f"{path}, unit 2"
    assert texts(read_bitext([path], "en-US", "de", skip_bad=True)) == [("color", "Farbe")]
    assert texts(read_bitext([path], "fr", "en", skip_bad=True)) == [("Bonjour", "Hello")]


def test_memories_in_utf_16_and_with_a_namespace(write) -> None:  # type: ignore[no-untyped-def]
    content = TMX.replace("<tmx ", '<tmx xmlns="http://www.lisa.org/tmx14" ').replace(
        '<?xml version="1.0"?>', '<?xml version="1.0" encoding="utf-16"?>'
    )
    path = write("m.tmx", content.encode("utf-16"))
    assert len(read_bitext([path], "en", "de", skip_bad=True)) == 2


@pytest.mark.parametrize(
    ("name", "content", "languages", "said"),
    [
        ("a.tsv", "en\tfr\na\tb\n", "en de", r"a.tsv:1: the header is en, fr; name one column 'de'"),
        ("a.tsv", "en\tde\tde\n", "en de", "name one column 'de'"),
        ("a.tsv", "", "en de", "name one column 'en'"),
        ("a.tsv", "en\tde\n", "en de", "holds no pair of en and de"),
        ("a.tsv", "en\tde\n", "en en", "both sides of the bitext are en"),
        ("a.tsv", "en\tde\n", "en deutsch!", "the bitext: 'deutsch!' is not a language; "),
        ("a.tsv", b"en\tde\n\xff\tx\n", "en de", "is not UTF-8"),
        ("m.tmx", TMX[:400], "en de", r"m.tmx is not whole XML"),
        (
            "m.tmx",
            TMX.replace("?>", ' encoding="Shift_JIS"?>', 1),
            "en de",
            r"m.tmx is in an encoding that is not read \(multi-byte .*\); save it as UTF-8",
        ),
        ("m.tmx", TMX.replace("?>", ' encoding="none-such"?>', 1), "en de", "none-such.*; save it as UTF-8"),
        ("m.txt", "a", "en de", r"m.txt is no bitext; give one .tsv or .tmx file, or two Moses files"),
    ],
)
def test_files_that_cannot_be_read(write, name: str, content: str, languages: str, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SprachbundError, match=said):
        read_bitext([write(name, content)], *languages.split(), skip_bad=True)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for names in (["a.tsv"], ["a.tmx"], ["a.en", "a.de"]):
        with pytest.raises(SprachbundError, match="No such file"):
            read_bitext([tmp_path / name for name in names], "en", "de")
    with pytest.raises(SprachbundError, match="nothing is no bitext"):
        read_bitext([], "en", "de")
