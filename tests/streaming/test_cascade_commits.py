"""Cascades that commit before the end of a stretch: which words, by each policy, and that the rest goes on from there.

Halves by hand: the recogniser hears a word every 0.3 s, and the translator writes every word of its text in capitals,
looking at it. So what has to be committed can be counted.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.decoding.long_form import translate
from sprachbund.decoding.options import TRANSCRIBE, DecodingOptions, GuardOptions
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Features, Target
from sprachbund.models.cascade import Cascade
from sprachbund.nn.decoder import DecoderCache
from sprachbund.streaming.cascade import position_after_change
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.events import LiveText
from sprachbund.streaming.options import LiveOptions, Policy
from sprachbund.streaming.writing import policies_of
from tests.decoding.test_cascade import Reading
from tests.decoding.test_translate import Loudness, recording
from tests.decoding.tiny_family import HOP, TinyFamily
from tests.streaming.test_engine import run, texts, written

WORD_FRAMES = 3
SCRIPT = ["So", "it", "goes.", "Then", "we", "went", "home.", "And", "that", "was", "all", "of", "it."]
"""What is said, a word every 0.3 s."""
VOCABULARY = sorted({*SCRIPT, "gone."})
FREE = DecodingOptions(guard=GuardOptions(enabled=False), max_tokens=40)


@pytest.fixture(autouse=True)
def rows_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The halves know a row by its place, which it would lose when others of its batch have ended."""
    monkeypatch.setattr("sprachbund.decoding.state.should_drop", lambda finished: False)


class ByWords(TinyFamily):
    """Writes words of a vocabulary, as `row_of` says for a memory; a token is a word."""

    def __init__(self) -> None:
        super().__init__(num_letters=len(VOCABULARY), max_tokens=40, max_window_s=30.0)

    def decode_text(self, tokens: Sequence[int]) -> str:
        return "".join(
            f" {self.spelt(VOCABULARY[t - self.first_letter])}" for t in tokens if t >= self.first_letter
        )

    def spelt(self, word: str) -> str:
        return word

    def row_of(self, memory: Tensor) -> list[int]:
        raise NotImplementedError

    def step(self, tokens: Tensor, cache: DecoderCache, weights: list[Tensor] | None = None) -> Tensor:
        first = cache.lengths.tolist()
        super().step(tokens, cache, weights)
        assert cache.memory_allowed is not None
        heard = cache.memory_allowed[:, 0, 0].sum(-1).tolist()
        logits = torch.full((*tokens.shape, self.vocabulary_size), -30.0)
        for row, begin in enumerate(first):
            own = self.row_of(self.memories[row][: heard[row]])
            for query in range(tokens.shape[1]):
                place = begin + query - self.num_prompt + 1
                token = own[place] if 0 <= place < len(own) else self.end_token
                logits[row, query, token] = 30.0
                if weights is not None:
                    for layer in weights:
                        layer[row, :, query] = 0.0
                        layer[row, :, query, min(max(0, place), heard[row] - 1)] = 1.0
        return logits

    def start(self, memory, **how):  # type: ignore[no-untyped-def]
        self.memories = memory.states
        return super().start(memory, **how)


class Hearing(ByWords):
    """Hears a word in every `WORD_FRAMES` frames; while it has heard fewer than `late` words, "goes." is "gone."."""

    num_prompt = 2
    late = 0

    def row_of(self, memory: Tensor) -> list[int]:
        words = SCRIPT[: len(memory) // WORD_FRAMES]
        if len(words) < self.late:
            words = ["gone." if word == "goes." else word for word in words]
        return [self.first_letter + VOCABULARY.index(word) for word in words]


class Capitals(ByWords):
    """Writes the words that it reads in capitals."""

    name = "capitals"
    num_prompt = 1

    def __init__(self, *, shown: bool = True) -> None:
        super().__init__()
        self.known_pairs = frozenset({("de", "es")})
        self.capabilities = replace(self.capabilities, text_input=self, token_offsets=self if shown else None)

    def spelt(self, word: str) -> str:
        return word.upper()

    def prompt(self, target: Target) -> list[int]:
        return [2]

    def text_features(self, texts: Sequence[str]) -> Features:
        rows = [[VOCABULARY.index(word) for word in text.split()] for text in texts]
        values = torch.zeros(len(texts), max(map(len, rows)), HOP)
        for r, row in enumerate(rows):
            values[r, : len(row), 0] = torch.tensor(row).float()
        return Features(values=values, num_frames=torch.tensor([len(row) for row in rows]))

    def encode(self, features: Features):  # type: ignore[no-untyped-def]
        memory = super().encode(features)
        return replace(memory, states=features.values[..., :16])

    def row_of(self, memory: Tensor) -> list[int]:
        return [self.first_letter + int(index) for index in memory[:, 0]]

    def source_offsets(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        offsets = []
        for text in texts:
            ends = np.cumsum([len(word) + 1 for word in text.split()])
            offsets.append(
                [(int(end) - 1 - len(w), int(end) - 1) for w, end in zip(text.split(), ends, strict=True)]
            )
        return offsets


def talk(policy: Policy, recogniser: Hearing | None = None, **live: object) -> dict[str, list[LiveText]]:
    """The events of each target, of four seconds of speech attempted every 0.3 s."""
    engine = LiveEngine(Cascade(recogniser or Hearing(), Capitals()), FREE, activity=Loudness())
    options = LiveOptions(policy=policy, step_s=0.3, **live)  # type: ignore[arg-type]
    session = engine.open(["es", TRANSCRIBE], "de", options)
    events = texts(run(engine, session, recording((1.0, 5.0), duration_s=7.0), 1600))
    return {target: [e for e in events if e.target == target] for target in ("es", TRANSCRIBE)}


def counts(events: list[LiveText]) -> list[tuple[int, int]]:
    """Words committed and words on the screen, after every event."""
    done, out = "", []
    for event in events:
        done += event.committed
        out.append((len(done.split()), len(f"{done}{event.tentative}".split())))
    return out


@pytest.mark.parametrize("border", [1, 3])
def test_alignatt_leaves_out_the_words_that_look_at_the_last_of_the_transcript(border: int) -> None:
    result = talk("alignatt", border_words=border)
    for target, events in result.items():
        own = [word.upper() if target == "es" else word for word in SCRIPT]
        for committed, shown in counts(events)[:-1]:
            assert committed == max(0, shown - border)
        text = "".join(event.committed for event in events).split()
        assert text == own[: len(text)]
        assert len(events) > 8
        assert events[-1].final
        assert not events[-1].tentative
        assert not any(event.retracted for event in events)


def test_local_agreement_is_one_attempt_behind() -> None:
    for events in talk("local-agreement").values():
        own = counts(events)
        assert all(now[0] == before[1] for before, now in pairwise(own[:-1]))


def test_all_policies_write_the_same_where_the_transcript_only_grows() -> None:
    texts_of = {
        policy: {t: "".join(e.committed for e in events) for t, events in talk(policy).items()}
        for policy in ("retranslation", "local-agreement", "alignatt")
    }
    assert len(set(map(str, texts_of.values()))) == 1
    samples = recording((1.0, 5.0), duration_s=7.0)
    cascade = Cascade(Hearing(), Capitals())
    whole = translate(
        cascade, samples, ["es", TRANSCRIBE], "de", FREE, sample_rate=SAMPLE_RATE, activity=Loudness()
    )
    assert {t: result.text for t, result in whole.items()} == texts_of["alignatt"]
    assert len(whole["es"].text.split()) > 11


@pytest.mark.parametrize("policy", ["local-agreement", "alignatt"])
def test_what_is_committed_stays_when_the_transcript_changes(policy: Policy) -> None:
    """The third word becomes another one after its sentence is over: the text goes on behind it all the same."""
    recogniser = Hearing()
    recogniser.late = 9
    result = talk(policy, recogniser)
    for target, events in result.items():
        text = "".join(event.committed for event in events)
        expected = " ".join(SCRIPT[: len(text.split())]).replace("goes.", "gone.")
        assert text == (expected.upper() if target == "es" else expected)


def test_words_between_the_committed_and_the_end_may_change() -> None:
    recogniser = Hearing()
    recogniser.late = 5
    events = talk("alignatt", recogniser, border_words=4)["es"]
    assert "".join(event.committed for event in events).startswith("SO IT GOES. THEN")
    assert any(event.retracted for event in events)


@pytest.mark.parametrize(
    ("before", "place", "now", "expected"),
    [
        ("a b c d", 2, "a b c d e", 2),
        ("a b c d", 2, "a x b c d", 3),
        ("a b c d", 2, "b c d", 1),
        ("a b c d", 3, "a x y c d", 4),
        ("a b c d", 4, "a b", 2),
        ("a b", 2, "a b c", 2),
        ("a b c", 1, "x y", 1),
        ("", 0, "a", 0),
    ],
)
def test_a_place_is_found_again(before: str, place: int, now: str, expected: int) -> None:
    assert position_after_change(before.split(), place, now.split()) == expected


def test_policies_go_by_what_the_translator_shows() -> None:
    assert policies_of(Cascade(Hearing(), Capitals())) == (
        "retranslation",
        "local-agreement",
        "alignatt",
        "span",
    )
    mute = Cascade(TinyFamily(), Reading())
    assert policies_of(mute) == ("retranslation", "local-agreement", "span")
    with pytest.raises(SprachbundError, match="alignatt is not for the model cascade"):
        LiveEngine(mute, FREE, activity=Loudness()).open(["es"], options=LiveOptions(policy="alignatt"))
    with pytest.raises(SprachbundError, match="wait-k is not for the model cascade"):
        LiveEngine(mute, FREE, activity=Loudness()).open(["es"], options=LiveOptions(policy="wait-k"))
    shows = LiveEngine(
        Cascade(Hearing(), Capitals()), replace(FREE, word_timestamps=True), activity=Loudness()
    )
    with pytest.raises(SprachbundError, match="before its words have times"):
        shows.open(["es"], options=LiveOptions(policy="alignatt"))


def test_sessions_together_commit_what_each_commits_alone() -> None:
    def sound(n: int) -> np.ndarray:
        return recording((1.0, 3.0 + n), duration_s=7.0, seed=n)

    options = LiveOptions(policy="alignatt", step_s=0.4)
    alone = []
    for n in range(3):
        engine = LiveEngine(Cascade(Hearing(), Capitals()), FREE, activity=Loudness())
        alone.append(written(run(engine, engine.open(["es"], "de", options), sound(n))))
    engine = LiveEngine(Cascade(Hearing(), Capitals()), FREE, activity=Loudness())
    sessions = [engine.open(["es"], "de", options) for _ in range(3)]
    together: list[list[object]] = [[], [], []]
    for begin in range(0, 7 * SAMPLE_RATE, 1600):
        for n, session in enumerate(sessions):
            session.push(sound(n)[begin : begin + 1600])
            if begin + 1600 >= 7 * SAMPLE_RATE:
                session.finish()
        while any(session.due for session in sessions):
            for own, new in zip(together, engine.step(sessions), strict=True):
                own += new
    assert [written(events) for events in together] == alone  # type: ignore[arg-type]


def test_the_attempt_before_is_the_draft_of_the_next() -> None:
    """Words that were written before are not written again one by one; no text changes."""
    result = {}
    for draft in ("auto", "none"):
        cascade = Cascade(Hearing(), Capitals())
        engine = LiveEngine(cascade, replace(FREE, draft=draft), activity=Loudness())
        session = engine.open(["es"], "de", LiveOptions(policy="retranslation", step_s=0.3))
        result[draft] = run(engine, session, recording((1.0, 5.0), duration_s=7.0), 1600)
        reports = engine.cascade_report()
        assert bool(reports) == (draft == "auto")
        assert all(
            report.accepted >= 0.9 * report.checked > 0 for report in reports
        )  # the transcript only grows
    assert result["auto"] == result["none"]


def test_sessions_stepped_together_have_their_own_glossaries() -> None:
    contexts = set[str]()

    class Asked(Capitals):
        def prompt(self, target: Target) -> list[int]:
            contexts.add(target.context)
            return super().prompt(target)

    translator = Asked()
    translator.capabilities = replace(translator.capabilities, follows_requests=True)
    engine = LiveEngine(Cascade(Hearing(), translator), FREE, activity=Loudness())
    options, samples = (
        LiveOptions(policy="local-agreement", step_s=0.3),
        recording((1.0, 5.0), duration_s=7.0),
    )
    glossaries = ["home = casa", "home = hogar"]
    sessions = [engine.open(["es"], "de", options, glossary=glossary) for glossary in glossaries]
    for begin in range(0, len(samples), 8000):
        for session in sessions:
            session.push(samples[begin : begin + 8000])
        while any(session.due for session in sessions):
            engine.step(sessions)
    assert contexts - {""} == set(glossaries)
