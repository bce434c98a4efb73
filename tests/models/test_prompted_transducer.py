"""`nemotron3_5_asr`, whose transducer is told the language behind the encoder: equal to transformers, and live."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Nemotron3_5AsrForRNNT

from sprachbund.audio.features import log_mel
from sprachbund.compression.onnx_export import check_exportable
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.decoding.search import search
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Memory, Target
from sprachbund.models.conformer import Conformer
from sprachbund.models.conformer.checkpoints import assemble, read_nemo, read_transformers
from sprachbund.models.conformer.extension import add_languages
from sprachbund.models.io import load, save
from sprachbund.nn.streaming_conformer import LEAD, StreamingEncoder
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.events import LiveText
from sprachbund.streaming.options import LiveOptions
from tests.decoding.test_translate import Loudness
from tests.models.transducer_checkpoints import (
    NUM_PIECES,
    PROMPTS,
    RIGHT,
    made_model,
    nemo_config,
    nemo_weights,
    sentencepiece_model,
    write_nemo,
    write_transformers,
)

LANGUAGES = ["en", "de", "th"]


@pytest.fixture(scope="module")
def theirs() -> Any:
    return made_model(prompted=True)


@pytest.fixture(scope="module")
def directory(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_transformers(tmp_path_factory.mktemp("prompted"), theirs)


@pytest.fixture(scope="module")
def ours(directory: Path) -> Conformer:
    return assemble(read_transformers(directory), LANGUAGES)


def features(num_frames: int = 801) -> Tensor:
    return 2 * torch.randn(1, num_frames, 40, generator=torch.Generator().manual_seed(1))


def sound() -> np.ndarray:
    rng = np.random.default_rng(2)
    return (0.3 * rng.standard_normal(60_000) * np.sin(np.arange(60_000) / 900)).astype(np.float32)


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("language", LANGUAGES)
def test_states_and_tokens_are_those_of_transformers(theirs: Any, ours: Conformer, language: str) -> None:
    mel, ids = features(), torch.tensor([PROMPTS[{"th": "th-TH"}.get(language, language)]])
    expected = theirs.get_audio_features(mel, prompt_ids=ids, num_lookahead_tokens=13).pooler_output
    fuse, target = ours.capabilities.fuse_language, Target(language=language, source=language)
    assert fuse is not None
    states, num_frames = ours.encoder(mel, torch.tensor([mel.shape[1]]))
    result = ours.transducer.joint.encoder(fuse(states, [target]))
    bias = theirs.decoder.decoder_projector.bias  # ours is one bias, theirs two that are added
    torch.testing.assert_close(result, expected + bias, atol=1e-4, rtol=1e-4)

    theirs.generation_config.decoder_start_token_id = NUM_PIECES
    mask = torch.ones(mel.shape[:2], dtype=torch.long)
    out = theirs.generate(
        input_features=mel, attention_mask=mask, num_lookahead_tokens=13, prompt_ids=ids, max_new_tokens=3000
    )
    wanted = [token for token in getattr(out, "sequences", out)[0].tolist() if token < NUM_PIECES]
    memory = Memory(states=states, num_frames=num_frames)
    ((row,),) = search(ours, memory, [[target]], DecodingOptions())
    _, token_ids = own_ids(ours)
    assert list(row.tokens) == [token_ids[token] for token in wanted]
    assert len(set(wanted)) > 3


def own_ids(model: Conformer) -> tuple[int, list[int]]:
    """Ours of every token of theirs: behind three and the languages; their first is the unknown one."""
    first = 3 + len(model.source_languages)
    return first, [2, *range(first, first + NUM_PIECES - 1)]


@pytest.mark.slow
@torch.inference_mode()
def test_the_language_changes_what_is_written(ours: Conformer) -> None:
    mel = features()
    states, num_frames = ours.encoder(mel, torch.tensor([mel.shape[1]]))
    asked = [[Target(language=tag, source=tag) for tag in LANGUAGES]]
    (together,) = search(ours, Memory(states=states, num_frames=num_frames), asked, DecodingOptions())
    assert len({row.tokens for row in together}) == 3
    for row, target in zip(together, asked[0], strict=True):
        ((alone,),) = search(
            ours, Memory(states=states, num_frames=num_frames), [[target]], DecodingOptions(beam_size=1)
        )
        assert alone.tokens == row.tokens


@torch.inference_mode()
@pytest.mark.parametrize("right", RIGHT)
def test_chunks_are_those_of_transformers(theirs: Any, ours: Conformer, right: int) -> None:
    """Both hear chunk by chunk from their caches; the first chunk of theirs lacks the seven frames of nothing."""
    encoder = ours.encoder
    assert isinstance(encoder, StreamingEncoder)
    (tier,) = (tier for tier in encoder.tiers if tier.right == right)
    size, mel = 8 * tier.chunk, log_mel(sound(), 40, normalise="nemo").T[None]
    state, waiting = encoder.start(1, tier), torch.cat([torch.zeros(1, LEAD, 40), mel], dim=1)
    past: dict[str, Any] = {"past_key_values": None, "padding_cache": None}
    begin = 0
    for number in range(min(4, waiting.shape[1] // size)):
        length = size - LEAD if number == 0 else size
        out = theirs.encoder(
            mel[:, begin : begin + length], num_lookahead_tokens=right, use_cache=True, **past
        )
        past = {"past_key_values": out.past_key_values, "padding_cache": out.padding_cache}
        begin += length
        piece = waiting[:, number * size : (number + 1) * size]
        states, _, state = encoder.stream(piece, torch.tensor([size]), state, tier)
        torch.testing.assert_close(states, out.last_hidden_state, atol=1e-4, rtol=1e-4)


def test_nemo_and_transformers_give_the_same_model(theirs: Any, ours: Conformer, tmp_path: Path) -> None:
    path = write_nemo(tmp_path / "x.nemo", nemo_config(theirs), nemo_weights(theirs), sentencepiece_model())
    result = assemble(read_nemo(path), LANGUAGES).state_dict()
    assert result.keys() == ours.state_dict().keys()
    assert all(torch.equal(value, result[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("language", ["en", "de"])
def test_live_text_is_that_of_the_whole(ours: Conformer, language: str, tmp_path: Path) -> None:
    save(ours, tmp_path)
    model = load(tmp_path)
    pause = np.zeros(16_000, np.float32)
    samples = np.concatenate([pause, sound(), pause])
    engine = LiveEngine(model, DecodingOptions(guard=GuardOptions(enabled=False)), activity=Loudness())
    session, text = engine.open([language], language, LiveOptions()), ""
    for begin in range(0, len(samples), 4000):
        session.push(samples[begin : begin + 4000])
        for event in engine.step([session])[0]:
            assert isinstance(event, LiveText)
            text += event.committed
    session.finish()
    while not session.finished:
        for event in engine.step([session])[0]:
            assert isinstance(event, LiveText)
            text += event.committed
    assert text.strip()
    other = "de" if language == "en" else "en"
    assert model.name == "conformer"
    assert text.split() == written(model, samples, language).split()
    assert text.split() != written(model, samples, other).split()


def written(model: Any, samples: np.ndarray, language: str) -> str:
    from sprachbund.decoding.long_form import translate

    options = DecodingOptions(guard=GuardOptions(enabled=False))
    result = translate(model, samples, [language], language, options, sample_rate=16_000, activity=Loudness())
    return result[language].text


def test_a_language_is_added(ours: Conformer) -> None:
    more = add_languages(ours, {"fr": "de", "nl": "mean"})
    before, after = ours.language_fusion.language.weight, more.language_fusion.language.weight
    assert torch.equal(after[:3], before)
    assert torch.equal(after[3], before[1])
    torch.testing.assert_close(after[4], before.mean(0))


def test_what_is_refused(directory: Path, ours: Conformer, theirs: Any, tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match="no prompt for 'fr'; it has those of de, en, th"):
        assemble(read_transformers(directory), ["fr"])
    with pytest.raises(SprachbundError, match="exported graphs have no place"):
        check_exportable(ours)
    isolated = write_transformers(tmp_path, theirs)
    (isolated / "processor_config.json").write_text("{}")
    with pytest.raises(SprachbundError, match="no dictionary of prompts"):
        read_transformers(isolated)
    (isolated / "processor_config.json").write_text('{"prompt_dictionary": {"en-US": 400}}')
    with pytest.raises(SprachbundError, match="no column 400"):
        assemble(read_transformers(isolated), ["en"])
    assert isinstance(theirs, Nemotron3_5AsrForRNNT)
