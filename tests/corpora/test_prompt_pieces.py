"""Pieces of prompts: the best path of CTC against all paths, cuts at planted pauses, and what is made of them."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scripts import prompt_pieces
from scripts.prompt_pieces import align, find_cuts

from sprachbund.audio.augment import CLEAN
from sprachbund.corpora.asterisk.packages import SPEAKERS
from sprachbund.corpora.asterisk.prompts import (
    PIECES,
    RecordedPiece,
    cut_pieces,
    load_prompt_set,
    read_pieces,
    write_pieces,
)
from sprachbund.corpora.telephone import Telephone, make_telephone
from sprachbund.data.manifest import Manifest
from tests.corpora.asterisk_tree import write_tree
from tests.stories.test_telephone import NUMBERS

SPEAKER = "asterisk-en-allison"


def _collapsed(path: tuple[int, ...]) -> list[int]:
    return [token for token, _ in itertools.groupby(path) if token]


@pytest.mark.parametrize("tokens", [[1], [1, 2], [1, 1], [2, 1, 2]])
def test_best_path_is_the_best_of_all(tokens: list[int]) -> None:
    rng = np.random.default_rng(len(tokens))
    for _ in range(5):
        log_probs = rng.normal(size=(5, 3))
        paths = [p for p in itertools.product(range(3), repeat=5) if _collapsed(p) == tokens]
        best = max(paths, key=lambda p: sum(log_probs[t, s] for t, s in enumerate(p)))
        begins = [t for t, s in enumerate(best) if s and (t == 0 or best[t - 1] != s)]
        assert align(log_probs, tokens) == begins
    assert align(rng.normal(size=(2, 3)), [1, 1]) is None  # a blank has to stand between


class _Words:
    """Stands for a conformer whose CTC head has a piece for each word."""

    frame_s = 0.08

    @property
    def transcript_tokenizer(self) -> "_Words":
        return self

    def encode(self, text: str) -> list[int]:
        return [number for number, _ in enumerate(text.split(), start=1)]

    def piece(self, token: int) -> str:
        return f"\u2581{token}"


def test_words_are_cut_at_pauses_and_not_in_running_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    # Three words in frames 2, 7 and 12 of 80 ms; it is quiet from 0.40 to 0.50 s, between the first two alone.
    samples = rng.normal(scale=0.1, size=round(1.2 * 16_000)).astype(np.float32)
    samples[6_400:8_000] *= 0.01
    log_probs = np.full((15, 4), -10.0)
    log_probs[:, 0] = -0.01
    for word, frame in ((1, 2), (2, 7), (3, 12)):
        log_probs[frame] = -10.0
        log_probs[frame, word] = -0.01
    monkeypatch.setattr(prompt_pieces, "transcript_log_probs", lambda model, samples: log_probs)
    cuts = find_cuts(_Words(), samples, ["one", "two", "three"])  # type: ignore[arg-type]
    assert cuts is not None
    assert [first for first, _ in cuts] == [0, 1, 3]
    assert 6_400 <= cuts[1][1] <= 8_000
    assert cuts[-1] == (3, len(samples))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folders = {s.language: s.folder for s in SPEAKERS if not s.held_out and s.language in ("en", "it")}
    texts = {f"press-{name}": f"please press the key {name}" for name in ("ban", "den", "fon", "gul")}
    digits = {f"digits/{n}": word for n, word in enumerate(NUMBERS["en"])}
    return write_tree(tmp_path / "tree", folders, {tag: {**texts, **digits} for tag in folders})


def test_tables_are_read_as_they_were_written(tmp_path: Path) -> None:
    pieces = [RecordedPiece(speaker=SPEAKER, prompt="a/b", start_s=0.125, end_s=1.5, text="l'été là")]
    write_pieces(pieces, tmp_path / "pieces.tsv")
    assert read_pieces(tmp_path / "pieces.tsv") == pieces


def test_pieces_are_cut_where_the_table_says(tree: Path) -> None:
    prompts = load_prompt_set(tree, ("en",)).prompts
    pieces = [
        RecordedPiece(speaker=SPEAKER, prompt="press-ban", start_s=0.1, end_s=0.3, text="please press"),
        RecordedPiece(speaker=SPEAKER, prompt="not there", start_s=0.1, end_s=0.3, text="nothing"),
    ]
    cut = cut_pieces(prompts, pieces)
    [(text, samples)] = cut[SPEAKER]
    assert text == "please press"
    assert set(cut) == {SPEAKER}
    assert len(samples) == 3200
    assert np.abs(samples).max() > 0.05


@pytest.mark.slow
def test_pieces_are_joined_in_training_alone(tree: Path, tmp_path: Path) -> None:
    words = ("please press", "the key", "ban")
    write_pieces(
        [
            RecordedPiece(
                speaker=SPEAKER, prompt=f"press-{name}", start_s=0.1 * n, end_s=0.1 * n + 0.2, text=text
            )
            for name in ("ban", "den", "fon", "gul")
            for n, text in enumerate(words)
        ],
        tmp_path / "pieces.tsv",
    )
    options = Telephone(
        languages=("en", "it"),
        train_utterances=40,
        heldout_utterances=2,
        shares=(0.0, 0.5, 0.0, 0.5),
        augmentation=CLEAN,
        leave_out=("asterisk-it-carlo",),
        pieces=tmp_path / "pieces.tsv",
    )
    make_telephone(tmp_path / "calls", options, source=tree, workers=1)
    kinds = Counter(utterance.custom["kind"] for utterance in Manifest(tmp_path / "calls/train"))
    joined = [u for u in Manifest(tmp_path / "calls/train") if u.custom["kind"] == "prompt/joined"]
    assert 8 < len(joined) < 32 < sum(kinds.values())
    for utterance in joined:
        rest = utterance.text
        for word in words:
            rest = rest.replace(word, "")
        assert not rest.strip()
        assert (utterance.speaker, utterance.language, dict(utterance.translations)) == (SPEAKER, "en", {})
    assert not any("joined" in u.custom["kind"] for u in Manifest(tmp_path / "calls/dev"))


def test_shipped_table_holds_training_prompts_of_training_speakers() -> None:
    pieces = read_pieces(PIECES)
    speakers = {speaker.tag for speaker in SPEAKERS if not speaker.held_out}
    assert {piece.speaker for piece in pieces} == speakers
    assert all(piece.end_s > piece.start_s and piece.text for piece in pieces)
    assert len(set(pieces)) == len(pieces) > 1000
