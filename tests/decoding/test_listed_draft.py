"""A text as the draft: whatever it lists, tokens and log-probabilities are those of reading the whole matrix."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.decoding.drafts import listed, load_draft
from sprachbund.decoding.drafts.listed import ListedRows, TextDraft, TextRun
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import speculation_for
from sprachbund.decoding.speculative import DraftState, speculative_search
from sprachbund.decoding.state import start_batch
from sprachbund.engines.choice import engine_for
from sprachbund.engines.extension import missing_because
from sprachbund.engines.native_engine import pack, with_native_modules
from sprachbund.engines.torch_layers import TorchDecoder
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Target
from sprachbund.models.io import load
from tests.decoding.tiny_family import TinyFamily, random_memory

ENGINES = ["torch", "torch-int8", *([] if missing_because() else ["native"])]
FRAMES = [6, 9, 4]


@pytest.fixture(scope="module")
def bundled() -> Family:
    return load()


def family_on(engine: str, **more: Any) -> Any:
    family: Any = TinyFamily(sharpness=1.0, **more)
    if engine == "torch-int8":
        family.decoder = TorchDecoder(family.decoder, "int8")
    if engine == "native":
        from sprachbund.engines.extension import choose_instruction_set, native

        family = with_native_modules(family, pack(family), native().Team(1), choose_instruction_set())
    return family


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    tokens_listed=st.sets(st.integers(0, 40), min_size=1),
    num_draft_tokens=st.integers(1, 8),
    timestamps=st.booleans(),
)
def test_tokens_are_those_of_the_whole_matrix(
    engine: str, seed: int, tokens_listed: set[int], num_draft_tokens: int, timestamps: bool
) -> None:
    family = family_on(engine, seed=seed, num_letters=20, num_times=16)
    memory, options = random_memory(FRAMES, seed), DecodingOptions(min_tokens=2)
    targets = [[Target(language="de", timestamps=timestamps), Target(language="en")]] * len(FRAMES)
    flat = [target for group in targets for target in group]
    expected = [h for group in search(family, memory, targets, options) for h in group]
    rows = torch.tensor(sorted(tokens_listed))
    with torch.inference_mode():
        started = start_batch(family, memory, targets, options, None)
        run = TextRun(ListedRows(family.decoder, rows))
        prompts = [family.prompt(target) for target in flat]
        draft_state = DraftState.begin(run, prompts, num_draft_tokens=num_draft_tokens)
        hypotheses = speculative_search(family, started, draft_state)
    assert [h.tokens for h in hypotheses] == [h.tokens for h in expected]
    # In bf16 a pass over several tokens rounds otherwise than one over each.
    near = 0.05 if engine == "torch-int8" else 1e-3
    for a, b in zip(hypotheses, expected, strict=True):
        assert a.log_probability == pytest.approx(b.log_probability, abs=near)
    assert bool((draft_state.accepted[:, 1:].sum(1) <= draft_state.checked).all())


def test_a_text_file_is_a_draft(bundled: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "german.txt"
    path.write_text("\n".join(["bitte geben Sie die Nummer der Konferenz ein"] * 30), encoding="utf-8")
    family = engine_for(bundled, "torch-int8").family
    with pytest.raises(SprachbundError, match="small models gain nothing"):
        load_draft(family, str(path))
    monkeypatch.setattr(listed, "_LEAST_SAVED_MB", 0.0)
    draft = load_draft(family, str(path))
    assert isinstance(draft, TextDraft)
    assert draft.missing == 0
    assert 0 < draft.saved_mb < 1
    generator = torch.Generator().manual_seed(0)
    samples = [(torch.randn(30_000, generator=generator) * 0.1).numpy()]
    targets = [[Target(language="de")]]
    options = DecodingOptions(draft=str(path), max_tokens=12)
    speculation = speculation_for(family, options)
    assert speculation is not None
    with torch.inference_mode():
        memory = family.encode(family.features(samples))
        plain = search(family, memory, targets, DecodingOptions(draft="none", max_tokens=12))
        hypotheses = search(family, memory, targets, options, speculation=speculation)
    assert [h.tokens for h in plain[0]] == [h.tokens for h in hypotheses[0]]
    assert speculation.report()[0].draft == "text"


def test_texts_that_cannot_be_are_refused(
    bundled: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listed, "_LEAST_SAVED_MB", 0.0)
    empty, binary, unrelated = (tmp_path / f"{name}.txt" for name in ("empty", "binary", "unrelated"))
    empty.write_text("\n \n")
    binary.write_bytes(b"\xff\xfe\x00")
    unrelated.write_text("\n".join(chr(97 + i % 26) * (i + 1) for i in range(11)))
    with pytest.raises(SprachbundError, match="empty"):
        load_draft(bundled, str(empty))
    with pytest.raises(SprachbundError, match="UTF-8"):
        load_draft(bundled, str(binary))
    with pytest.raises(SprachbundError, match="MB less"):
        load_draft(bundled, str(unrelated))
    good = tmp_path / "good.txt"
    good.write_text("guten Tag\n" * 20)
    with pytest.raises(SprachbundError, match="greedy"):
        speculation_for(bundled, DecodingOptions(draft=str(good), beam_size=2))
