"""A language-neutral meaning: what is said, before any language says it; data sets are split by it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Slot = int | str | tuple[int | str, ...]
Split = Literal["train", "dev", "test"]

LANGUAGES: tuple[str, ...] = ("en", "es", "fr", "it", "de", "ru", "pt", "nl")
PHRASE_KINDS: tuple[str, ...] = ("phrase",)
_HELD_OUT_PERCENT = 2


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """One thing to say: a kind of sentence and the values that fill it."""

    kind: str
    slots: Mapping[str, Slot]

    @property
    def key(self) -> str:
        """A stable identifier, the same for equal meanings on every machine."""
        return json.dumps([self.kind, dict(self.slots)], sort_keys=True, ensure_ascii=False)

    def __hash__(self) -> int:
        return hash(self.key)

    def to_json(self) -> str:
        """Write as one line of JSON."""
        return json.dumps({"kind": self.kind, "slots": dict(self.slots)}, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Meaning":
        """Read what `to_json` wrote; lists become tuples again."""
        value = json.loads(text)
        slots = {
            name: tuple(slot) if isinstance(slot, list) else slot for name, slot in value["slots"].items()
        }
        return cls(kind=value["kind"], slots=slots)


def split_of(meaning: Meaning) -> Split:
    """Say which part a meaning belongs to, by hash of its key: 2 % test, 2 % dev.

    Fixed phrases are always "train": holding out one of a few hundred wordings would measure unseen
    vocabulary, not the learning of sentences.
    """
    if meaning.kind in PHRASE_KINDS:
        return "train"
    bucket = int.from_bytes(hashlib.sha256(meaning.key.encode()).digest()[:4], "big") % 100
    if bucket < _HELD_OUT_PERCENT:
        return "test"
    return "dev" if bucket < 2 * _HELD_OUT_PERCENT else "train"
