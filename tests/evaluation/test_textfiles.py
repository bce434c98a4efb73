import pytest

from sprachbund.errors import SprachbundError
from sprachbund.evaluation.lines import read_ids, read_parallel, read_texts


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbfa\nb\n", ":1: begins with a UTF-8 byte order mark"),
        (b"\xff\xfea\x00", ":1: begins with a UTF-16 byte order mark"),
        (b"a\nb\nc\r\nd\n", r":3: mixed line ends \(1 CR LF, 3 LF\)"),
        (b"a\r\nb\nc\r\n", r":2: mixed line ends \(2 CR LF, 1 LF\)"),
        (b"a\rb\r", r":1: its lines end in CR alone"),
        (b"a\nb\rc\n", r":2: mixed line ends \(2 LF, 1 CR\)"),
        (b"a\n\xe4\n", ":2: not UTF-8 at byte 1"),
        ("a\nb\u2028c\n".encode(), r":2: holds U\+2028"),
        (b"a\n \nb\n", ":2: the reference is empty"),
    ],
)
def test_faults_are_named_with_their_line(tmp_path, raw, message):
    (tmp_path / "ref").write_bytes(raw)
    with pytest.raises(SprachbundError, match="ref.*" + message):
        read_texts(tmp_path / "ref", allow_empty=False)


def test_whole_files_are_read_as_they_are(tmp_path):
    (tmp_path / "lf").write_bytes("a \nä\n".encode())
    (tmp_path / "crlf").write_bytes("a \r\nä".encode())
    for name in ("lf", "crlf"):
        assert list(read_texts(tmp_path / name, allow_empty=False).lines) == ["a ", "ä"]
    (tmp_path / "hyp").write_text("a\n\n")
    assert list(read_texts(tmp_path / "hyp", allow_empty=True).lines) == ["a", ""]


def test_different_counts_are_refused(tmp_path):
    (tmp_path / "hyp").write_text("a\nb\n")
    (tmp_path / "ref").write_text("a\nb\nc\n")
    with pytest.raises(SprachbundError, match=r"hyp has 2 lines and .*ref 3; .*hyp ends after line 2"):
        read_parallel(tmp_path / "hyp", tmp_path / "ref")


def test_missing_file(tmp_path):
    with pytest.raises(SprachbundError, match="No such file"):
        read_texts(tmp_path / "none", allow_empty=True)


def test_ids(tmp_path):
    (tmp_path / "ids").write_text("a\nb\na\n")
    with pytest.raises(SprachbundError, match="ids:3: id 'a' stands on line 1 already"):
        read_ids(tmp_path / "ids", 3)
    (tmp_path / "ids").write_text("a\nb\n")
    with pytest.raises(SprachbundError, match="2 ids for 3 texts"):
        read_ids(tmp_path / "ids", 3)
