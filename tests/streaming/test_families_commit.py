"""Every family with cross-attention commits text before the speech has ended.

A model of random weights writes few whole words, so a token counts as a word here; attention, search and everything
else are the family's own.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from sprachbund.decoding.search import SearchRequest
from sprachbund.decoding.state import Hypothesis
from sprachbund.models.base import Family
from sprachbund.streaming import engine as live_engine
from sprachbund.streaming import writing
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.events import LiveText
from sprachbund.streaming.options import LiveOptions, Policy
from sprachbund.streaming.session import CaptionLine
from sprachbund.streaming.writing import Attempt, PendingStretch, StretchRow, end_text, policies_of, write
from tests.decoding.test_translate import Loudness
from tests.models.contract import OPEN, DecodingOptions, make_subject, talk

NAMES = (
    "conformer",
    "split conformer",
    "whisper",
    "seamless",
    "Canary",
    "Cohere ASR",
    "Moonshine",
    "streaming Moonshine",
)
STEP_S, BLOCK = 0.4, 3200


@pytest.fixture(scope="module", params=NAMES)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Family, str, str]:
    """A family, a language that it knows, and one to write it in."""
    subject = make_subject(request.param, tmp_path_factory.mktemp("family"))
    return subject.family, *subject.pair


@pytest.fixture(autouse=True)
def a_token_is_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def split(family: Family, tokens: Sequence[int], language: str) -> list[tuple[str, int]]:
        return [(str(token), 1) for token in tokens]

    monkeypatch.setattr(writing, "split_words", split)


Seen = list[tuple[CaptionLine, Attempt, int]]


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Every attempt at speech that went on: whose text it was, and how many words were committed."""
    seen: Seen = []

    def noted(name: str) -> Any:
        plain = writing.POLICY_FUNCTIONS[name]

        def policy(attempt: Attempt, line: CaptionLine, options: LiveOptions) -> int:
            count = plain(attempt, line, options)
            seen.append((line, attempt, count))
            return count

        return policy

    functions = {name: noted(name) for name in writing.POLICY_FUNCTIONS}
    monkeypatch.setattr(writing, "POLICY_FUNCTIONS", functions)
    return seen


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[CaptionLine, list[int]]]:
    """Tokens that were committed before the end of a stretch, by its policy or because a row has no more room."""
    seen: list[tuple[CaptionLine, list[int]]] = []

    def noted(
        family: Family, job: PendingStretch, row: StretchRow, tokens: Any, words: Any, num_words: int
    ) -> LiveText | None:
        seen.append((job.stretch.lines[row.target], [int(word) for word, _ in words[:num_words]]))
        return write(family, job, row, tokens, words, num_words)

    monkeypatch.setattr(writing, "write", noted)
    monkeypatch.setattr(live_engine, "write", noted)
    return seen


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[tuple[CaptionLine, tuple[int, ...]]]:
    """The text of every stretch that has ended, and the tokens that came last."""
    seen: list[tuple[CaptionLine, tuple[int, ...]]] = []

    def noted(family: Family, job: PendingStretch, row: StretchRow) -> LiveText:
        seen.append((job.stretch.lines[row.target], row.hypothesis.tokens))
        return end_text(family, job, row)

    monkeypatch.setattr(live_engine, "end_text", noted)
    return seen


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[SearchRequest, list[list[Hypothesis]]]]:
    """Every search, and what it wrote."""
    seen: list[tuple[SearchRequest, list[list[Hypothesis]]]] = []
    plain = SearchRequest.run

    def noted(request: SearchRequest) -> list[list[Hypothesis]]:
        result = plain(request)
        seen.append((request, result))
        return result

    monkeypatch.setattr(SearchRequest, "run", noted)
    return seen


def run(model: tuple[Family, str, str], policy: Policy, **options: Any) -> list[LiveText]:
    family, source, target = model
    engine = LiveEngine(family, DecodingOptions(**OPEN), activity=Loudness())
    session = engine.open([target], source, LiveOptions(policy=policy, step_s=STEP_S, **options))
    events: list[LiveText] = []
    samples = talk()
    for begin in range(0, len(samples), BLOCK):
        session.push(samples[begin : begin + BLOCK])
        if begin + BLOCK >= len(samples):
            session.finish()
        while session.due:
            events += [event for event in engine.step([session])[0] if isinstance(event, LiveText)]
    return events


def test_these_are_all_that_show_what_they_read(model: tuple[Family, str, str]) -> None:
    assert {"local-agreement", "alignatt", "wait-k"} <= set(policies_of(model[0]))


@pytest.mark.parametrize("border_s", [0.0, 0.4, 100.0])
def test_alignatt_commits_tokens_before_the_first_that_looks_at_the_newest_audio(
    model: tuple[Family, str, str], attempts: Seen, border_s: float
) -> None:
    events = run(model, "alignatt", border_s=border_s)
    assert attempts
    for _, attempt, count in attempts:
        assert len(attempt.looks_at) >= len(attempt.words)
        late = [index for index, second in enumerate(attempt.looks_at) if second >= attempt.newest]
        assert count == min([attempt.num_whole, *late])
    committed = sum(count for _, _, count in attempts)
    assert (committed > 0) == (border_s < 100), "no audio is older than a hundred seconds"
    assert any(event.committed and not event.final for event in events) == (border_s < 100)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["local-agreement", "alignatt", "wait-k"])
def test_text_behind_what_is_committed_is_what_the_model_writes_behind_any_part_of_it(
    model: tuple[Family, str, str],
    commits: list[tuple[CaptionLine, list[int]]],
    ends: list[tuple[CaptionLine, tuple[int, ...]]],
    searches: list[tuple[SearchRequest, list[list[Hypothesis]]]],
    policy: Policy,
) -> None:
    """Greedy search goes on behind a forced prefix as it would by itself, and no text is lost or written twice."""
    early: dict[str, dict[str, float]] = {"alignatt": {"border_s": 0.0}, "wait-k": {"wait_k": 1}}
    events = run(model, policy, **early.get(policy, {}))
    begun = [(request, result) for request, result in searches if request.targets[0][0].prefix]
    assert begun, "nothing was committed early"
    for request, result in begun:
        [[asked]], [[hypothesis]] = request.targets, result
        limit = request.options.max_tokens
        assert limit is not None
        for cut in range(1, len(hypothesis.tokens)):
            longer = replace(asked, prefix=(*asked.prefix, *hypothesis.tokens[:cut]))
            options = replace(request.options, max_tokens=limit - cut)
            [[rest]] = replace(request, targets=[[longer]], options=options).run()
            assert rest.tokens == hypothesis.tokens[cut:]
    assert events[-1].final
    assert not events[-1].tentative
    assert len(ends) == len({event.segment for event in events})
    for line, last in ends:
        before = [token for own, tokens in commits if own is line for token in tokens]
        whole = model[0].decode_text([*before, *last])
        assert "".join(line.written.split()) == "".join(whole.split())
