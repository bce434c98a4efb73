"""Why there is no compiled part, for users."""

from pathlib import Path

from sprachbund.engines.extension import _not_compiled


def test_the_compilers_answer_is_in_the_reason(tmp_path: Path) -> None:
    note = tmp_path / "_native_missing.txt"
    assert _not_compiled(note).startswith("it was not compiled when sprachbund was installed; ")
    note.write_text("command 'g++' failed: No such file or directory\n", encoding="utf-8")
    assert "installed (command 'g++' failed: No such file or directory); install again" in _not_compiled(note)
