"""Every kind of draft on random weights: identical tokens, files, and what does not fit."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.decoding.drafts import load_draft
from sprachbund.decoding.drafts.base import NO_DRAFT_TOKEN, Draft
from sprachbund.decoding.drafts.model import ModelDraft
from sprachbund.decoding.drafts.network import MedusaDraft, ParasiteDraft
from sprachbund.decoding.drafts.token_map import TokenMap, TokenMapDraft
from sprachbund.decoding.logits_process import Suppressed
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation, speculation_for
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from sprachbund.models.drafts import DraftCard, find_drafts, write_draft
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.drafts import MedusaHeads, MedusaShape, Parasite, ParasiteShape
from tests.decoding.test_speculative import FRAMES, PLAIN, assert_same, flat, targets_for
from tests.decoding.tiny_family import TinyFamily, random_memory

FAMILY = TinyFamily(seed=5)


def parasite_for(family: TinyFamily, blocks: int = 2) -> ParasiteDraft:
    torch.manual_seed(0)
    return ParasiteDraft.around(Parasite(ParasiteShape.of(family.decoder, num_blocks=blocks)), family.decoder)


def medusa_for(family: TinyFamily) -> MedusaDraft:
    return MedusaDraft.around(MedusaHeads(MedusaShape(width=16, num_heads=3, num_blocks=2)), family.decoder)


def map_for(family: TinyFamily, options: DecodingOptions) -> TokenMapDraft:
    """Fitted on the very texts that the family writes."""
    rows = flat(search(family, random_memory(FRAMES, 1), targets_for(8), options))
    texts = {
        tag: [[*row.tokens, family.end_token] for row in rows[place::2]]
        for place, tag in enumerate(("de", "en"))
    }
    return TokenMapDraft(TokenMap.fit(texts, family.vocabulary_size))


def drafts(family: TinyFamily) -> list[Draft]:
    smaller = TinyFamily(seed=11)
    return [parasite_for(family), medusa_for(family), ModelDraft(smaller), map_for(family, PLAIN)]


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize(("num_draft_tokens", "beam_size"), [(1, 1), (4, 1), (8, 1), (3, 3)])
def test_tokens_are_those_without_a_draft(place: int, num_draft_tokens: int, beam_size: int) -> None:
    memory, options = random_memory(FRAMES, 1), replace(PLAIN, beam_size=beam_size)
    draft = drafts(FAMILY)[place]
    draft.check(FAMILY)
    wanted = search(FAMILY, memory, targets_for(8), options)
    speculation = Speculation(draft, num_draft_tokens=num_draft_tokens)
    assert_same(search(FAMILY, memory, targets_for(8), options, None, speculation), wanted)
    assert sum(report.checked for report in speculation.report()) > 0
    assert len(FAMILY.decoder.norm._forward_hooks) == 0


def test_a_model_that_drafts_for_itself_is_always_right() -> None:
    memory, targets = random_memory(FRAMES, 1), targets_for(8)
    speculation = Speculation(ModelDraft(TinyFamily(seed=5)), num_draft_tokens=3)
    wanted = search(FAMILY, memory, targets, PLAIN)
    assert_same(search(FAMILY, memory, targets, PLAIN, None, speculation), wanted)
    assert [report.acceptance for report in speculation.report()] == [1.0, 1.0]


def test_a_map_of_the_texts_themselves_predicts_most_of_them() -> None:
    memory, targets = random_memory(FRAMES, 1), targets_for(8)
    speculation = Speculation(map_for(FAMILY, PLAIN), num_draft_tokens=2)
    search(FAMILY, memory, targets, PLAIN, None, speculation)
    assert min(report.acceptance for report in speculation.report()) > 0.5


def test_medusa_sees_the_state_behind_which_the_newest_token_was_chosen() -> None:
    """Untrained heads repeat the decoder: they propose that the newest token comes once more."""
    seen: list[tuple[torch.Tensor, np.ndarray]] = []
    draft = medusa_for(FAMILY)
    start = draft.start

    def watched(*args: object) -> object:
        run = start(*args)  # type: ignore[arg-type]
        propose = run.propose

        def noted(rows: object, count: int) -> torch.Tensor:
            draft_tokens = propose(rows, count)  # type: ignore[arg-type]
            alive = rows.cache.lengths > 0  # type: ignore[attr-defined]
            seen.append((draft_tokens[alive], rows.last(1)[alive]))  # type: ignore[attr-defined]
            return draft_tokens

        run.propose = noted  # type: ignore[method-assign]
        return run

    draft.start = watched  # type: ignore[method-assign, assignment]
    search(
        FAMILY, random_memory(FRAMES, 1), targets_for(8), PLAIN, None, Speculation(draft, num_draft_tokens=2)
    )
    assert seen[0][0].shape[1] == 0  # nothing was seen yet
    assert len(seen) > 3
    for draft_tokens, newest in seen[1:]:
        assert draft_tokens.shape[1] in (1, 2)  # one where the row is almost full
        assert (draft_tokens.numpy() == newest).all()


@given(
    texts=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=7), max_size=6),
    context=st.lists(st.integers(0, 4), max_size=5),
)
@settings(max_examples=80, deadline=None)
def test_the_map_gives_what_counting_gives(texts: list[list[int]], context: list[int]) -> None:
    token_map = TokenMap.fit({"de": texts, "en": [[0, 1, 2, 3, 4]]}, 5)
    padded = [*[5] * 3, *context]
    followers = token_map.follow(0, padded[-3:])
    expected = NO_DRAFT_TOKEN
    for order in (3, 2, 1):
        counts: Counter[int] = Counter()
        for text in texts:
            whole = [*[5] * 3, *text]
            counts.update(whole[i] for i in range(3, len(whole)) if whole[i - order : i] == padded[-order:])
        if counts:
            most = max(counts.values())
            expected = min(token for token, count in counts.items() if count == most)
            break
    assert followers == expected


def test_rare_followers_are_left_out_when_asked() -> None:
    texts = {"de": [[1, 2], [1, 2], [3, 4]]}
    often = TokenMap.fit(texts, 9, orders=(1,), min_count=2)
    assert [often.follow(0, [token]) for token in (1, 3)] == [2, NO_DRAFT_TOKEN]
    assert often.follow(-1, [1]) == NO_DRAFT_TOKEN  # an unknown language


@pytest.mark.parametrize("kind", ["parasite", "medusa", "token-map"])
def test_files_give_back_what_proposes_the_same(kind: str, tmp_path: Path) -> None:
    family, memory, targets = TinyFamily(seed=5), random_memory(FRAMES, 1), targets_for(8)
    by_kind = {d.name: d for d in drafts(family)}
    draft = by_kind[kind]
    draft.save(tmp_path / "draft.safetensors")  # type: ignore[attr-defined]
    family.drafts = find_drafts(tmp_path)  # type: ignore[attr-defined]
    assert list(family.drafts) == [kind]  # type: ignore[attr-defined]
    again = load_draft(family, kind)
    reports = []
    for one in (draft, again):
        speculation = Speculation(one, num_draft_tokens=3)
        search(family, memory, targets, PLAIN, None, speculation)
        reports.append(speculation.report())
    assert reports[0] == reports[1]  # half precision changes no draft token here


def test_auto_takes_the_draft_beside_the_model_and_none_takes_nothing(tmp_path: Path) -> None:
    family = TinyFamily(seed=5)
    assert speculation_for(family, DecodingOptions()) is None
    map_for(family, PLAIN).save(tmp_path / "draft.safetensors")
    family.drafts = find_drafts(tmp_path)  # type: ignore[attr-defined]
    speculation = speculation_for(family, DecodingOptions())
    assert speculation is not None
    assert speculation.draft.name == "token-map"
    assert speculation_for(family, DecodingOptions(draft="none")) is None


def test_several_drafts_have_names_and_the_plain_file_comes_first(tmp_path: Path) -> None:
    parasite_for(FAMILY).save(tmp_path / "draft.a-second.safetensors")
    map_for(FAMILY, PLAIN).save(tmp_path / "draft.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert list(find_drafts(tmp_path)) == ["token-map", "a-second"]


def test_auto_says_why_a_draft_beside_the_model_is_not_used(tmp_path: Path) -> None:
    family, notes = TinyFamily(seed=5), list[str]()
    parasite_for(TinyFamily(num_letters=20)).save(tmp_path / "draft.safetensors")
    family.drafts = find_drafts(tmp_path)  # type: ignore[attr-defined]
    assert speculation_for(family, DecodingOptions(), notes) is None
    assert "parasite" in notes[0]
    assert "25 tokens, the model has 17" in notes[0]


def test_a_draft_that_is_named_and_not_there_is_an_error_that_lists_what_is(tmp_path: Path) -> None:
    family = TinyFamily(seed=5)
    rest = r"a draft's file, a text .* \(TEXT\.txt\), or the directory of a smaller model, alone or as DIR\+TEXT\.txt"
    said = rf"no draft 'parasit', and the model \S+ has none of its own; give auto, none, {rest}$"
    with pytest.raises(SprachbundError, match=said):
        speculation_for(family, DecodingOptions(draft="parasit"))
    parasite_for(family).save(tmp_path / "draft.safetensors")
    family.drafts = find_drafts(tmp_path)  # type: ignore[attr-defined]
    with pytest.raises(SprachbundError, match=rf"give auto, none, parasite, {rest}; did you mean parasite\?"):
        load_draft(family, "parasit")


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("./no/model", "./no/model"),
        ("none.txt", "none.txt"),
        ("draft.safetensors", "draft.safetensors"),
        ("none+text.txt", "none"),
    ],
)
def test_a_path_where_nothing_is(
    name: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SprachbundError, match=f"nothing is at '{missing}'; check the path of the draft, or give"
    ):
        load_draft(TinyFamily(), name)


def test_another_depth_or_vocabulary_is_named() -> None:
    deeper = TinyFamily(seed=1)
    deeper.decoder = TextDecoder(vocabulary_size=17, max_tokens=24, width=16, num_heads=2, num_layers=3)
    for draft, who in ((parasite_for(FAMILY), "parasite"), (medusa_for(FAMILY), "Medusa")):
        with pytest.raises(
            SprachbundError, match=f"{who}.*decoder of 2 layers of width 16.*has 3 of width 16"
        ):
            draft.check(deeper)
    larger = TinyFamily(num_letters=30)
    for draft in drafts(FAMILY):
        with pytest.raises(SprachbundError, match="made for 17 tokens, the model has 35"):
            draft.check(larger)


def test_a_cache_of_another_shape_is_named() -> None:
    draft = parasite_for(FAMILY)
    memory, targets = random_memory([4], 1), [Target(language="de")]
    run = draft.start(FAMILY, memory, targets, 10)
    other = TextDecoder(vocabulary_size=17, max_tokens=24, width=16, num_heads=4, num_layers=2)
    from sprachbund.decoding.drafts.base import DecodingState

    rows = DecodingState(
        cache=other.start(memory.states, memory.num_frames),
        tokens=np.zeros((1, 10), np.int64),
        lengths=np.array([3]),
        suppressed=Suppressed.of([torch.zeros(17, dtype=torch.bool)], torch.device("cpu")),
    )
    with pytest.raises(SprachbundError, match="2 layers x 2 heads x 8, this one has 2 x 4 x 4"):
        run.propose(rows, 1)


def test_a_decoder_without_an_inside_is_named() -> None:
    family = TinyFamily(seed=5)
    family.decoder = torch.nn.Identity()  # type: ignore[assignment]
    with pytest.raises(SprachbundError, match="Identity does not show; use the torch engine"):
        parasite_for(FAMILY).check(family)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_draft_tokens": 0}, "num_draft_tokens is 0; give 1 to 8"),
        ({"num_draft_tokens": 9}, "num_draft_tokens is 9; give 1 to 8"),
        (
            {"accept": "unchecked"},
            "changes the text for a draft that is named, and draft is auto; name a draft",
        ),
        ({"accept": "top-2", "draft": "none"}, "draft is none"),
        ({"accept": "top-9", "draft": "parasite"}, "choose one of exact, top-2, top-3, unchecked"),
        (
            {"accept": "top-2", "draft": "parasite", "beam_size": 2},
            "which is for greedy search, and beam_size is 2",
        ),
    ],
)
def test_options_that_cannot_be_are_refused_before_any_work(options: dict[str, object], said: str) -> None:
    with pytest.raises(SprachbundError, match=said):
        DecodingOptions(**options)  # type: ignore[arg-type]


def test_files_that_are_no_drafts_are_named(tmp_path: Path) -> None:
    path = tmp_path / "draft.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(SprachbundError, match="cannot be read as a draft"):
        find_drafts(tmp_path)
    write_draft(path, DraftCard(kind="oracle", vocabulary_size=17), {"x": torch.zeros(1)})
    family = TinyFamily(seed=5)
    with pytest.raises(SprachbundError, match="kind 'oracle'; known here: parasite, medusa, token-map"):
        load_draft(family, str(path))
    card = parasite_for(FAMILY).card
    write_draft(path, card, {"x": torch.zeros(1)})
    with pytest.raises(SprachbundError, match="does not hold the parasite it describes"):
        load_draft(family, str(path))
