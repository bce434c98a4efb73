"""Utterances of several tables brought together by their sound: one recording, all its translations.

Corpora publish each pair of languages by itself, with the same speech again and again. The tables are
joined in a temporary database on disk, so that memory stays small when a corpus has fifteen translations
of every clip.
"""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sprachbund.data.corpora.items import Cut, Entry, Item, LeftOut, Part

_TABLES = """
create table said (part text, key text, data text, primary key (part, key)) without rowid;
create table translated (
    part text, key text, language text, text text, primary key (part, key, language)
) without rowid;
create table left_out (part text, place text, reason text);
"""


class Join:
    """Collects utterances, then gives them as parts, sorted by recording and time."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("")  # private, on disk, gone when closed
        self._db.executescript(_TABLES)

    def add(
        self,
        part: str,
        *,
        where: str,
        utterance_id: str,
        cut: Cut,
        language: str,
        text: str,
        speaker: str = "",
        translations: dict[str, str] | None = None,
        custom: dict[str, Any] | None = None,
    ) -> None:
        """An utterance, or translations more of one that is there (same language, recording, times)."""
        key = (
            f"{language}\t{cut.path.name}\t{round(cut.start_s * 1000):012d}\t{_milliseconds(cut.duration_s)}"
        )
        data = [
            where,
            utterance_id,
            str(cut.path),
            cut.start_s,
            cut.duration_s,
            language,
            text,
            speaker,
            custom or {},
        ]
        self._db.execute(
            "insert or ignore into said values (?, ?, ?)", (part, key, json.dumps(data, ensure_ascii=False))
        )
        self._db.executemany(
            "insert or ignore into translated values (?, ?, ?, ?)",
            ((part, key, target, said) for target, said in (translations or {}).items()),
        )

    def leave_out(self, part: str, where: str, reason: str) -> None:
        """Something that becomes no utterance."""
        self._db.execute("insert into left_out values (?, ?, ?)", (part, where, reason))

    def parts(self) -> list[Part]:
        """All parts with an utterance or something left out, in order of their names."""
        query = "select part, count(*) from (select part from said union all select part from left_out) "
        counts = self._db.execute(query + "group by part order by part").fetchall()
        return [Part(name=name, total=total, entries=_Entries(self._db, name)) for name, total in counts]


class _Entries:
    """The entries of one part; holds the database as long as someone may read them."""

    def __init__(self, database: sqlite3.Connection, part: str) -> None:
        self._db, self._part = database, part

    def __call__(self) -> Iterator[Entry]:
        rows = self._db.execute("select key, data from said where part = ? order by key", (self._part,))
        for key, data in rows:
            yield self._item(key, json.loads(data))
        left_out = self._db.execute(
            "select place, reason from left_out where part = ? order by rowid", (self._part,)
        )
        for where, reason in left_out:
            yield LeftOut(where=where, reason=reason)

    def _item(self, key: str, data: list[Any]) -> Item:
        translations = self._db.execute(
            "select language, text from translated where part = ? and key = ? order by language",
            (self._part, key),
        )
        where, utterance_id, path, start_s, duration_s, language, text, speaker, custom = data
        return Item(
            where=where,
            utterance_id=utterance_id,
            sound=Cut(path=Path(path), start_s=start_s, duration_s=duration_s),
            language=language,
            text=text,
            speaker=speaker,
            translations=dict(translations),
            custom=custom,
        )


def _milliseconds(duration_s: float | None) -> int:
    return -1 if duration_s is None else round(duration_s * 1000)
