"""Punctuators from public checkpoints of transformers that classify the tokens of a text.

Their labels are marks, as in `oliverguhr/fullstop-punctuation-multilang-large` and `kredor/punctuate-all` ("0", ".",
",", "?", "-", ":"), or a mark and a case, as in `felflare/bert-restore-punctuation` ("O" and "U" behind the mark, such
as ",U", "OO"). A word has the label of its last piece where labels are marks alone, and of its first piece where they
have a case, as their authors read them. Long texts are read in windows that overlap; the words at the end of one are
labelled in the next.

Shapes: W windows, P pieces, C labels.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sprachbund.errors import SprachbundError
from sprachbund.models.hub import (
    NO_CODE,
    check_config,
    one_line,
    optional_setting,
    quiet_transformers,
    read_model,
)
from sprachbund.text.punctuation import Case, Label, Mark

_MARKS: Mapping[str, Mark] = {
    "0": "",
    "O": "",
    "": "",
    ".": ".",
    ",": ",",
    "?": "?",
    "!": "!",
    ":": ":",
    ";": ",",  # as texts with marks are read in this package
    "-": "",  # not heard
    "'": "",
}
_CASES: Mapping[str, Case] = {"O": "lower", "U": "capital"}
_MARK_AND_CASE = re.compile(r"(?P<mark>[O.,?!:;'-])(?P<case>[OU])")
_MOST_WORDS, _OVERLAP = 200, 20


@dataclass(frozen=True, kw_only=True)
class _Window:
    """Words `first` to `last`, of which those from `begin` to `end` get their labels here."""

    first: int
    last: int
    begin: int
    end: int


class TokenClassifier:
    """A punctuator, see `sprachbund.text.punctuation.Punctuator`.

    Args:
        model: model of transformers, for token classification.
        tokenizer: tokenizer of transformers, a fast one.
        name: for messages.

    Raises:
        SprachbundError: labels that are no marks.
    """

    languages: tuple[str, ...] | None = None  # checkpoints do not say

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.name = name
        self._model, self._tokenizer = model, tokenizer
        labels = [str(model.config.id2label[n]) for n in range(model.config.num_labels)]
        self._labels = [_read_label(label, labels, name) for label in labels]
        self._first_piece = any(label.case is not None for label in self._labels)
        positions = optional_setting(model.config, "max_position_embeddings") or 512
        # Models of RoBERTa's kind begin to count behind their padding token.
        spare = 2 + (model.config.pad_token_id or 0)
        self._most_pieces = max(8, positions - spare - tokenizer.num_special_tokens_to_add())

    @classmethod
    def load(cls, directory: Path, name: str) -> "TokenClassifier":
        """Read a directory of transformers.

        Args:
            directory: directory with the model and its tokenizer.
            name: for messages.

        Raises:
            SprachbundError: it is no model for token classification, or not a whole one.
        """
        from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

        path = directory / "config.json"
        if not any(
            "TokenClassification" in str(one) for one in check_config(path).get("architectures") or ()
        ):
            raise SprachbundError(
                f"{name} is no punctuator: {path.name} names no model for token classification; take one such as "
                "oliverguhr/fullstop-punctuation-multilang-large"
            )
        with one_line(directory), quiet_transformers():
            config = AutoConfig.from_pretrained(directory, local_files_only=True, **NO_CODE)
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, **NO_CODE)
        model = read_model(
            AutoModelForTokenClassification,
            directory,
            config,
            build=partial(AutoModelForTokenClassification.from_config, **NO_CODE),
            surplus=(r"pooler\.", r"position_ids$"),
            dtype=torch.float32,
            **NO_CODE,
        )
        return cls(model.eval(), tokenizer, name)

    @torch.inference_mode()
    def label(self, texts: Sequence[Sequence[str]], language: str) -> list[list[Label]]:
        """A label for every word of every text.

        Args:
            texts: words.
            language: not given to the model.
        """
        return [self._label(words) for words in texts]

    def _label(self, words: Sequence[str]) -> list[Label]:
        return [label for window in self._windows(words) for label in self._label_window(words, window)]

    def _windows(self, words: Sequence[str]) -> Iterator[_Window]:
        """Windows that together label every word once; each fits the model."""
        sizes = [max(1, len(ids)) for ids in self._pieces(words)]
        first = begin = 0
        while begin < len(words):
            last, total = first, 0
            while (
                last < len(words) and last - first < _MOST_WORDS and total + sizes[last] <= self._most_pieces
            ):
                total += sizes[last]
                last += 1
            last = max(last, begin + 1)  # a word that is too long alone is cut by the tokenizer
            end = last if last == len(words) else max(begin + 1, last - _OVERLAP)
            yield _Window(first=first, last=last, begin=begin, end=end)
            first, begin = max(first + 1, end - _OVERLAP), end

    def _pieces(self, words: Sequence[str]) -> list[list[int]]:
        if not words:
            return []
        ids: list[list[int]] = self._tokenizer(
            [[word] for word in words], is_split_into_words=True, add_special_tokens=False
        )["input_ids"]
        return ids

    def _label_window(self, words: Sequence[str], window: _Window) -> list[Label]:
        own = list(words[window.first : window.last])
        encoded = self._tokenizer(
            own,
            is_split_into_words=True,
            truncation=True,
            max_length=self._most_pieces + self._tokenizer.num_special_tokens_to_add(),
            return_tensors="pt",
        )
        best = self._model(**encoded).logits[0].argmax(-1).tolist()
        of_word: dict[int, int] = {}
        for piece, word in enumerate(encoded.word_ids()):
            if word is not None and not (self._first_piece and word in of_word):
                of_word[word] = piece
        chosen = (of_word.get(n - window.first) for n in range(window.begin, window.end))
        return [Label(mark="") if piece is None else self._labels[best[piece]] for piece in chosen]


def _read_label(label: str, labels: Sequence[str], name: str) -> Label:
    if label in _MARKS:
        return Label(mark=_MARKS[label])
    if match := _MARK_AND_CASE.fullmatch(label):
        return Label(mark=_MARKS[match["mark"]], case=_CASES[match["case"]])
    shown = ", ".join(map(repr, labels[:8]))
    raise SprachbundError(
        f"{name} has the label {label!r}, which is no mark (its labels: {shown}); take a punctuator with labels such "
        "as '.', ',', '?' and '0'"
    )
