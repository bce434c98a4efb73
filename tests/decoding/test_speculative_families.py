"""Drafts on every family we have, native engine included, and what a caller sees of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sprachbund.decoding.drafts import load_draft
from sprachbund.decoding.drafts.base import Draft
from sprachbund.decoding.drafts.model import ModelDraft
from sprachbund.decoding.drafts.network import MedusaDraft, ParasiteDraft
from sprachbund.decoding.drafts.token_map import TokenMap, TokenMapDraft
from sprachbund.decoding.long_form import translate
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.speculation import Speculation
from sprachbund.engines.choice import engine_for, why_not_native
from sprachbund.engines.options import EngineChoice
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from sprachbund.models.drafts import find_drafts
from sprachbund.models.whisper import load
from sprachbund.nn.drafts import MedusaHeads, MedusaShape, Parasite, ParasiteShape
from tests.decoding.test_speculative import assert_same, flat
from tests.decoding.test_translate import Loudness, recording
from tests.decoding.tiny_family import TinyFamily
from tests.models.seamless.support import make_pair
from tests.models.whisper_support import make_directory
from tests.training.made import make_model


@pytest.fixture(scope="module", params=["conformer", "whisper", "seamless"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "conformer":
        return make_model().eval()
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "whisper":
        make_directory(directory)
        return load(directory)
    return make_pair(directory, "seamless_m4t_v2")[1].eval()


def drafts(family: Any) -> list[Draft]:
    decoder = family.decoder
    width = decoder.embedding.embedding_dim
    torch.manual_seed(0)
    parasite = Parasite(ParasiteShape.of(decoder, num_blocks=1))
    parasite.start_from(decoder)
    return [
        ParasiteDraft.around(parasite, decoder),
        MedusaDraft.around(MedusaHeads(MedusaShape(width=width, num_heads=2, num_blocks=1)), decoder),
        ModelDraft(family),
    ]


def asked(family: Any) -> list[list[Target]]:
    """Two languages from each of three utterances, timed where the family has times."""
    timed = family.capabilities.timestamps is not None
    source, *_ = family.source_languages
    targets = sorted(t for s, t in family.pairs() if s == source)[:2]
    return [[Target(language=t, source=source, timestamps=timed) for t in targets]] * 3


@torch.inference_mode()
def test_every_draft_on_every_family_leaves_the_tokens_as_they_are(family: Any) -> None:
    noise = np.random.default_rng(0)
    samples = [0.1 * noise.standard_normal(n).astype(np.float32) for n in (9000, 16000, 12000)]
    memory, targets = family.encode(family.features(samples)), asked(family)
    options = DecodingOptions(draft="none", max_tokens=16)
    wanted = search(family, memory, targets, options)
    size = family.decoder.embedding.num_embeddings
    texts = {t.language: [row[i].tokens for row in wanted] for i, t in enumerate(targets[0])}
    for draft in (*drafts(family), TokenMapDraft(TokenMap.fit(texts, size, orders=(2, 1)))):
        draft.check(family)
        speculation = Speculation(draft, num_draft_tokens=3)
        assert_same(search(family, memory, targets, options, None, speculation), wanted)
        assert sum(report.checked for report in speculation.report()) > 0
        if draft.name == "model" and not targets[0][0].timestamps:  # no draft knows the rules on times
            assert all(report.acceptance == 1.0 for report in speculation.report())


@torch.inference_mode()
def test_the_native_engine_takes_drafts_of_every_kind() -> None:
    model = make_model().eval()
    if reason := why_not_native(model):
        pytest.skip(reason)
    native = engine_for(model, "native", threads=1).family
    noise = np.random.default_rng(0)
    samples = [0.1 * noise.standard_normal(n).astype(np.float32) for n in (9000, 16000, 12000)]
    memory, targets = native.encode(native.features(samples)), asked(model)
    for beam_size in (1, 3):
        options = DecodingOptions(draft="none", max_tokens=16, beam_size=beam_size)
        wanted = search(native, memory, targets, options)
        for draft in (ModelDraft(native), ModelDraft(model)):
            draft.check(native)
            hypotheses = search(
                native, memory, targets, options, None, Speculation(draft, num_draft_tokens=3)
            )
            assert [h.tokens for h in flat(hypotheses)] == [h.tokens for h in flat(wanted)]
            if beam_size == 1:
                # The same logits however the work is cut; their own search rounds log-probabilities otherwise.
                sums = [
                    (a.log_probability, b.log_probability)
                    for a, b in zip(flat(hypotheses), flat(wanted), strict=True)
                ]
                assert all(a == pytest.approx(b, abs=1e-4) for a, b in sums)
    parasite, medusa = drafts(model)[:2]
    greedy = DecodingOptions(draft="none", max_tokens=16)
    wanted = search(native, memory, targets, greedy)
    for network in (parasite, medusa):
        network.check(native)
        hypotheses = search(native, memory, targets, greedy, None, Speculation(network, num_draft_tokens=2))
        assert [h.tokens for h in flat(hypotheses)] == [h.tokens for h in flat(wanted)]


def test_a_translation_says_how_many_draft_tokens_were_accepted(tmp_path: Path) -> None:
    family = TinyFamily(seed=5)
    options = DecodingOptions(guard=GuardOptions(enabled=False), draft="none")
    audio, activity = recording((1.0, 2.5), (4.0, 5.0), duration_s=6.0), Loudness()
    plain = translate(family, audio, ["de"], "en", options, sample_rate=16_000, activity=activity)["de"]
    assert plain.speculation == ()
    assert "speculation" not in plain.to_dict()
    TokenMapDraft(TokenMap.fit({"de": [[5, 6, 7, 8, 9] * 4]}, family.vocabulary_size)).save(
        tmp_path / "draft.safetensors"
    )
    family.drafts = find_drafts(tmp_path)  # type: ignore[attr-defined]
    drafted = DecodingOptions(guard=options.guard, draft="token-map", num_draft_tokens=2)
    translation = translate(family, audio, ["de"], "en", drafted, sample_rate=16_000, activity=Loudness())[
        "de"
    ]
    assert translation.text == plain.text
    (report,) = json.loads(translation.to_json())["speculation"]
    assert (report["source_language"], report["target_language"], report["draft"]) == (
        "en",
        "de",
        "token-map",
    )
    assert report["checked"] > 0
    assert report["acceptance"] == pytest.approx(report["accepted"] / report["checked"], abs=1e-4)


@pytest.mark.parametrize("engine", ["torch", "torch-fp32", "torch-bf16", "native"])
@torch.inference_mode()
def test_a_smaller_model_drafts_on_the_engine_of_the_larger_among_the_tokens_of_a_text(
    engine: EngineChoice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # packed weights are kept there
    make_directory(tmp_path / "model")
    model = load(tmp_path / "model")
    if engine == "native" and (reason := why_not_native(model)):
        pytest.skip(reason)
    family: Any = engine_for(model, engine, threads=1 if engine == "native" else None).family
    text = tmp_path / "words.txt"
    text.write_text("the words that may come\n" * 3, encoding="utf-8")
    samples = [0.1 * np.random.default_rng(0).standard_normal(9000).astype(np.float32)]
    memory, targets = family.encode(family.features(samples)), [[Target(language="en", source="en")]]
    options = DecodingOptions(draft="none", max_tokens=16)
    wanted = search(family, memory, targets, options)
    accepted = []
    for name in (str(tmp_path / "model"), f"{tmp_path / 'model'}+{text}"):
        draft: Any = load_draft(family, name)
        assert type(draft.family.decoder) is type(family.decoder)
        if engine == "native":
            assert draft.family.decoder.team is family.decoder.team
        speculation = Speculation(draft, num_draft_tokens=3)
        # Several positions at once are added up in another order; of numbers in bf16 that is 2^-8 of what is added.
        step = 2**-8 if engine == "torch-bf16" else 1e-5
        assert_same(search(family, memory, targets, options, None, speculation), wanted, step=step)
        accepted.append(speculation.report()[0].acceptance)
    assert accepted[0] == 1.0  # it is its own draft
    assert accepted[1] < 1.0  # random weights write tokens that the text has not
    with pytest.raises(SprachbundError, match=r"none\.txt is not there; give a text"):
        load_draft(family, f"{tmp_path / 'model'}+{tmp_path / 'none.txt'}")
