"""Features are those of the layer, and an utterance's own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sprachbund.errors import SprachbundError
from sprachbund.models.io import load
from sprachbund.models.tokens.sources import FeatureSource, open_source
from sprachbund.nn.conformer import sinusoids, valid_frames
from tests.models.seamless.support import make_checkpoint
from tests.models.whisper_support import make_directory
from tests.units.made import conformer, tones, w2v_bert, wav2vec

STACKED = ("Wav2Vec2Bert", "seamless_m4t", "seamless_m4t_v2")
KINDS = ("conformer", "whisper", "WavLM", "Hubert", "HubertGroup", "Wav2Vec2", *STACKED)
UTTERANCES = [tones(word, i) for i, word in enumerate(["abc", "fade", "bead", "ca", "deafbc", "fed"])]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    make_directory(root / "whisper")
    for version in STACKED[1:]:
        make_checkpoint(root / version, version)
    return {
        "conformer": conformer(root / "conformer"),
        "whisper": root / "whisper",
        "WavLM": wav2vec(root / "wavlm"),
        "Hubert": wav2vec(root / "hubert", "Hubert"),
        "HubertGroup": wav2vec(root / "hubert-base", "Hubert", "group"),
        "Wav2Vec2": wav2vec(root / "wav2vec", "Wav2Vec2"),
        "Wav2Vec2Bert": w2v_bert(root / "w2v-bert"),
        **{version: root / version for version in STACKED[1:]},
    }


def source(directory: Path, **options: Any) -> FeatureSource:
    return open_source(directory, 2, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_same_alone_and_among_others(kind: str, directories: dict[str, Path]) -> None:
    together = source(directories[kind], batch_s=100.0).features(UTTERANCES)
    model = source(directories[kind], batch_s=0.1)
    for utterance, frames in zip(UTTERANCES, together, strict=True):
        alone = model.features([utterance])[0]
        assert frames.shape == (model.num_frames(len(utterance)), model.info.width)
        np.testing.assert_allclose(frames, alone, atol=3e-5)
        assert frames.std() > 0.05
    assert model.info.frame_s == {"conformer": 0.08}.get(kind, 0.02)


@pytest.mark.parametrize("kind", ["WavLM", "Hubert", "HubertGroup", "Wav2Vec2"])
def test_a_layer_is_that_of_transformers(kind: str, directories: dict[str, Path]) -> None:
    from transformers import AutoFeatureExtractor, AutoModel

    extractor: Any = AutoFeatureExtractor.from_pretrained(directories[kind])
    model = AutoModel.from_pretrained(directories[kind]).eval()
    given = extractor(UTTERANCES[4], sampling_rate=16_000, return_tensors="pt", return_attention_mask=False)
    with torch.no_grad():
        wanted = model(**given, output_hidden_states=True).hidden_states[2][0]
    result = source(directories[kind]).features([UTTERANCES[4]])[0]
    np.testing.assert_allclose(result, wanted.numpy(), atol=2e-5)


@pytest.mark.parametrize("kind", STACKED)
def test_a_layer_of_stacked_frames_is_that_of_transformers(kind: str, directories: dict[str, Path]) -> None:
    import transformers

    names = {STACKED[0]: "Wav2Vec2BertModel", STACKED[1]: "SeamlessM4TForSpeechToText"}
    name = names.get(kind, "SeamlessM4Tv2ForSpeechToText")
    model: Any = getattr(transformers, name).from_pretrained(directories[kind]).eval()
    encoder = model if kind == STACKED[0] else model.speech_encoder
    wanted = []
    encoder.encoder.layers[1].register_forward_hook(lambda layer, given, output: wanted.append(output[0]))
    extractor: Any = transformers.SeamlessM4TFeatureExtractor.from_pretrained(directories[kind])
    given = extractor(UTTERANCES[4], sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        encoder(**given)
    result = source(directories[kind]).features([UTTERANCES[4]])[0]
    np.testing.assert_allclose(result, wanted[0].flatten(0, -2)[: len(result)].numpy(), atol=2e-5)


def test_a_layer_is_that_of_a_conformer(directories: dict[str, Path]) -> None:
    model: Any = load(directories["conformer"])
    features = model.features([UTTERANCES[2]])
    with torch.no_grad():
        x, num_frames = model.encoder.subsampling(features.values, features.num_frames)
        x = model.encoder.norm(x) + sinusoids(x.shape[1], x.shape[2])
        wanted = model.encoder.layers[0](x, valid_frames(num_frames, x.shape[1]))[0]
    result = open_source(directories["conformer"], 1).features([UTTERANCES[2]])[0]
    np.testing.assert_allclose(result, wanted.numpy(), atol=1e-5)


def test_a_layer_is_that_of_whisper_before_the_last_norm(directories: dict[str, Path]) -> None:
    model: Any = load(directories["whisper"])
    result = torch.from_numpy(source(directories["whisper"]).features([UTTERANCES[0]])[0])
    with torch.no_grad():
        wanted = model.encode(model.features([UTTERANCES[0]])).states[0, : len(result)]
        np.testing.assert_allclose(model.encoder.norm(result).numpy(), wanted.numpy(), atol=2e-5)


@pytest.mark.parametrize("kind", ["WavLM", "whisper"])
def test_long_speech_is_cut_into_windows(kind: str, directories: dict[str, Path]) -> None:
    model = source(directories[kind])
    window = round(model.info.window_s * 16_000)
    long = np.random.default_rng(0).standard_normal(window + 9000).astype(np.float32) * 0.1
    frames = model.features([long])[0]
    parts = model.features([long[:window], long[window:]])
    np.testing.assert_allclose(frames, np.concatenate(parts), atol=3e-5)
    assert len(frames) == model.num_frames(len(long))


@pytest.mark.parametrize("kind", KINDS)
def test_no_frames(kind: str, directories: dict[str, Path]) -> None:
    model = source(directories[kind])
    short = np.zeros(150, np.float32)
    assert model.num_frames(150) == model.num_frames(0) == 0
    result = model.features([short, UTTERANCES[0], short[:0]])
    assert [len(frames) for frames in result] == [0, model.num_frames(len(UTTERANCES[0])), 0]
    assert result[0].shape == (0, model.info.width)


def test_models_that_cannot_be_used(directories: dict[str, Path], tmp_path: Path) -> None:
    for kind, layers in (("WavLM", 3), ("conformer", 2), *zip(STACKED, (3, 2, 2), strict=True)):
        with pytest.raises(SprachbundError, match=f"has layers 1 to {layers}, not 9"):
            open_source(directories[kind], 9)
    for telephone in (wav2vec(tmp_path / "wavlm", rate=8000), w2v_bert(tmp_path / "w2v-bert", rate=8000)):
        with pytest.raises(SprachbundError, match=r"takes speech of 8000 Hz"):
            source(telephone)
    with pytest.raises(SprachbundError, match=r"no config.json"):
        source(tmp_path)
    with pytest.raises(SprachbundError, match=r"device 'abacus' cannot be used"):
        source(directories["WavLM"], device="abacus")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(
        SprachbundError, match=r"a bert model, which is no encoder of samples; .* type hubert, sew, .*"
    ):
        source(tmp_path / "bert")
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "hubert"}))
    with pytest.raises(SprachbundError, match=r"cannot be read as a speech encoder"):
        source(tmp_path / "bert")
    for kind in ("WavLM", "conformer"):
        assert source(directories[kind]).info.hash != source(directories["Hubert"]).info.hash
