"""Whole models on the native engine, through the searches that users run."""

from pathlib import Path

import numpy as np
import pytest
import torch

import sprachbund
from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.audio.load import load as load_audio
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.words import align
from sprachbund.engines import extension
from sprachbund.engines.choice import choose_threads, engine_for
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Target
from sprachbund.models.io import load
from sprachbund.models.whisper import Whisper
from sprachbund.nn.decoder import TextDecoder
from sprachbund.util.devices import torch_threads
from tests.engines.support import needs_native, on_every_set, relative_error
from tests.models.whisper_support import TINY, make_directory, make_transformers_model, transplanted

CLIPS = [
    np.random.default_rng(i).standard_normal(n).astype(np.float32) * 0.1
    for i, n in enumerate((32000, 9000, 20000))
]
TARGETS = [[Target(language="en", source="de"), Target(language="de", source="de")]] * len(CLIPS)


@pytest.fixture(scope="module")
def whisper() -> Whisper:
    return transplanted(make_transformers_model(TINY), TINY)


@pytest.fixture(scope="module")
def bundled() -> Family:
    return load()


@needs_native
@on_every_set
@pytest.mark.parametrize("real_length", [False, True])
def test_a_whisper_model_decodes_as_on_torch(whisper: Whisper, isa: str, real_length: bool) -> None:
    model = transplanted(make_transformers_model(TINY), TINY, real_length=real_length)
    engine = engine_for(model, "native", instruction_set=isa)
    assert engine.name == "native"
    assert isa in engine.why
    assert isinstance(engine.family, Whisper)
    with torch.inference_mode():
        memories = [f.encode(f.features(CLIPS)) for f in (model, engine.family)]
        valid = memories[0].num_frames
        for b in range(len(CLIPS)):
            n = memories[0].states.shape[1] if valid is None else int(valid[b])
            assert relative_error(memories[1].states[b, :n], memories[0].states[b, :n]) < 0.05
        spoken = [f.language_log_probs(m) for f, m in zip((model, engine.family), memories, strict=True)]
    torch.testing.assert_close(spoken[1], spoken[0], atol=0.3, rtol=0)


@needs_native
@pytest.mark.parametrize("beam_size", [1, 3])
def test_search_is_the_same_alone_and_in_a_batch(whisper: Whisper, beam_size: int) -> None:
    family = engine_for(whisper, "native").family
    options = DecodingOptions(beam_size=beam_size, max_tokens=12)
    memory = family.encode(family.features(CLIPS))
    together = search(family, memory, TARGETS, options)
    for b in range(len(CLIPS)):
        alone = search(family, memory.select(torch.tensor([b])), TARGETS[:1], options)
        assert [h.tokens for h in alone[0]] == [h.tokens for h in together[b]]


@needs_native
def test_the_bundled_model_writes_what_it_writes_on_torch(bundled: Family) -> None:
    engine = engine_for(bundled, "native")
    assert "int8 encoder and decoder" in engine.why
    recordings = sorted((Path(__file__).parents[2] / "examples" / "recordings").glob("*"))
    clips = [load_audio(path)[: 10 * SAMPLE_RATE] for path in recordings]
    targets = [[Target(language=tag) for tag in ("de", "fr", "en")]] * len(clips)
    rows = []
    for family in (bundled, engine.family):
        memory = family.encode(family.features(clips))
        result = search(family, memory, targets, DecodingOptions())
        rows.append([hypothesis for group in result for hypothesis in group])
    same = [a.tokens == b.tokens for a, b in zip(*rows, strict=True)]
    # The clips are cut off in the middle of words, where some rows hang by a hair.
    assert np.mean(same) >= 0.6
    scores = [[h.mean_log_probability for h in row] for row in rows]
    assert np.median(np.abs(np.subtract(*scores))) < 0.02


@needs_native
def test_words_are_aligned_on_the_native_engine(whisper: Whisper) -> None:
    targets, tokens = [[Target(language="en", source="en")]], [[list(b"hello world")]]
    rows = []
    for family in (whisper, engine_for(whisper, "native").family):
        memory = family.encode(family.features(CLIPS[:1]))
        rows.append(align(family, memory, targets, tokens, [2.0])[0][0])
    assert len(rows[1].starts_s) == len(rows[0].starts_s)
    np.testing.assert_allclose(rows[1].log_probabilities, rows[0].log_probabilities, atol=0.3)


@needs_native
def test_a_directory_is_packed_once_and_gives_the_same(tmp_path: Path) -> None:
    make_directory(tmp_path / "model")
    model = load(tmp_path / "model")
    tokens = torch.randint(0, 256, (1, 7))
    logits = []
    for _ in range(2):
        engine = engine_for(model, "native", directory=tmp_path / "model", cache=tmp_path / "cache")
        assert engine.notes == ()
        memory = engine.family.encode(engine.family.features(CLIPS[:1]))
        logits.append(engine.family.step(tokens, engine.family.start(memory)))
    assert torch.equal(*logits)
    assert len(list((tmp_path / "cache").glob("*.sbpacked"))) == 1
    direct = engine_for(model, "native").family
    assert torch.equal(
        logits[0], direct.step(tokens, direct.start(direct.encode(direct.features(CLIPS[:1]))))
    )


def test_the_torch_engine_is_the_model_itself(whisper: Whisper) -> None:
    engine = engine_for(whisper, "torch")
    assert (engine.name, engine.family) == ("torch", whisper)


@needs_native
def test_the_model_itself_is_left_as_it_was(whisper: Whisper) -> None:
    engine_for(whisper, "native")
    assert type(whisper.decoder) is TextDecoder
    assert len(whisper.encoder.layers) == TINY.encoder_layers


def test_without_the_compiled_part_torch_answers_and_says_why(
    whisper: Whisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extension, "_loaded", lambda: "it was not compiled")
    engine = engine_for(whisper)
    assert engine.name.startswith("torch")
    assert "it was not compiled" in engine.why
    with pytest.raises(SprachbundError, match="it was not compiled, or use the torch engine"):
        engine_for(whisper, "native")


@needs_native
def test_models_the_kernels_cannot_run_stay_on_torch(whisper: Whisper) -> None:
    model = transplanted(make_transformers_model(TINY), TINY)
    model.decoder.layers[0].feed_forward.activation = "relu"
    assert "gelu and relu" in engine_for(model).why
    with pytest.raises(SprachbundError, match="gelu and relu"):
        engine_for(model, "native")
    assert "meta" in engine_for(Whisper.shape(TINY)).why


def test_bad_choices_are_errors(whisper: Whisper) -> None:
    with pytest.raises(SprachbundError, match="auto, native, native-int4, torch"):
        engine_for(whisper, "cuda")  # type: ignore[arg-type]
    for threads in (0, -1, 100_000):
        with pytest.raises(SprachbundError, match=f"threads is {threads}, and this machine has"):
            choose_threads(threads)
    assert choose_threads(None) >= 1


def test_threads_are_those_of_torch_where_torch_computes() -> None:
    with torch_threads(2):
        assert torch.get_num_threads() == 2
        sprachbund.load(engine="torch", threads=1)
        assert torch.get_num_threads() == 1
    with pytest.raises(SprachbundError, match="threads is 100000, and this machine has"):
        sprachbund.load(engine="torch", threads=100_000)


@needs_native
def test_threads_of_the_native_engine_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sprachbund.engines.packed_cache.default_cache", lambda: tmp_path)
    with torch_threads(2):
        sprachbund.load(engine="native", threads=1)
        assert torch.get_num_threads() == 2


@needs_native
def test_instructions_the_processor_lacks_are_an_error(whisper: Whisper) -> None:
    with pytest.raises(SprachbundError, match=r"'neon'.*portable"):
        engine_for(whisper, "native", instruction_set="neon")


@needs_native
def test_a_model_loaded_by_name_says_what_computes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sprachbund.engines.packed_cache.default_cache", lambda: tmp_path)
    model = sprachbund.load(engine="native", threads=1)
    assert model.engine is not None
    assert model.engine.name == "native"
    assert "1 thread," in model.engine.why
    assert len(list(tmp_path.glob("*.sbpacked"))) == 1
    assert sprachbund.load(engine="torch").engine.name == "torch"
    assert "on this processor" in sprachbund.load().engine.why
    with pytest.raises(SprachbundError, match="auto, native, native-int4, torch"):
        sprachbund.load("no/such/model", engine="gpu")  # type: ignore[arg-type]
