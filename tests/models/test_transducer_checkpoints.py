"""Made checkpoints of NeMo's and transformers' layouts: read, equal to transformers' own model, damage told."""

from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from transformers import NemotronAsrStreamingFeatureExtractor

from sprachbund.audio.features import LogMelStream, log_mel
from sprachbund.decoding.transducer import transducer_greedy
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from sprachbund.models.conformer import Conformer
from sprachbund.models.conformer.checkpoints import (
    assemble,
    from_merges,
    own_tokenizer,
    read_nemo,
    read_transformers,
)
from sprachbund.models.io import load, save
from sprachbund.nn.streaming_conformer import StreamingEncoder
from tests.models.transducer_checkpoints import (
    NUM_PIECES,
    RIGHT,
    TEXTS,
    made_model,
    nemo_config,
    nemo_weights,
    sentencepiece_model,
    write_nemo,
    write_transformers,
)


def sound(num_samples: int = 50_000, seed: int = 2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.3 * rng.standard_normal(num_samples) * np.sin(np.arange(num_samples) / 900)).astype(np.float32)


@pytest.fixture(scope="module")
def theirs():
    return made_model()


@pytest.fixture(scope="module", params=["nemo", "transformers"])
def ours(request, theirs, tmp_path_factory) -> Conformer:
    folder = tmp_path_factory.mktemp("external")
    if request.param == "transformers":
        return assemble(read_transformers(write_transformers(folder, theirs)), ["en"])
    path = write_nemo(folder / "x.nemo", nemo_config(theirs), nemo_weights(theirs), sentencepiece_model())
    return assemble(read_nemo(path), ["en"])


def mel(num_frames: int = 201) -> torch.Tensor:
    """One more than a whole number of frames, for which theirs have as many states as ours."""
    return log_mel(sound(num_frames * 160), 40, normalise="nemo").T[None]


@pytest.mark.parametrize("right", RIGHT)
@torch.no_grad()
def test_the_encoder_computes_what_transformers_does(theirs, ours, right):
    encoder = ours.encoder
    assert isinstance(encoder, StreamingEncoder)
    assert [tier.right for tier in encoder.tiers] == list(RIGHT)
    (tier,) = (tier for tier in encoder.tiers if tier.right == right)
    features = mel(1201)
    expected = theirs.encoder(features, num_lookahead_tokens=right).last_hidden_state
    result, num_frames = encoder(features, torch.tensor([1201]), tier=tier)
    assert result.shape == expected.shape
    assert int(num_frames) == 151
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_it_writes_what_transformers_writes(theirs, ours):
    features = 2 * torch.randn(1, 801, 40, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(1, 801, dtype=torch.long)
    theirs.generation_config.decoder_start_token_id = NUM_PIECES
    expected = theirs.generate(input_features=features, attention_mask=mask, num_lookahead_tokens=13)
    expected = getattr(expected, "sequences", expected)[0].tolist()
    states, num_frames = ours.encoder(features, torch.tensor([801]))
    (result,), _ = transducer_greedy(ours.transducer, states, num_frames)
    wanted = [token for token in expected if token < NUM_PIECES]
    pieces = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    assert len(set(wanted)) > 5
    assert [ours.tokenizer.piece(token) for token in result.tokens] == [pieces.id_to_piece(t) for t in wanted]


def test_features_are_those_of_transformers(ours):
    samples = sound()
    extractor = NemotronAsrStreamingFeatureExtractor(feature_size=40)
    expected = extractor(samples, sampling_rate=16_000, return_tensors="pt")
    count = int(expected["attention_mask"].sum())
    result = ours.features([samples])
    assert int(result.num_frames) == count == len(samples) // 160
    torch.testing.assert_close(result.values[0], expected["input_features"][0, :count], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("block", [1, 77, 160, 4000])
def test_features_of_a_stream_are_those_of_the_whole(block):
    samples = sound(2000 if block == 1 else 20_000)
    stream = LogMelStream(40, "nemo")
    pieces = [stream.push(samples[begin : begin + block]) for begin in range(0, len(samples), block)]
    result = torch.cat([*pieces, stream.push(samples[:0]), stream.finish()])
    torch.testing.assert_close(result, log_mel(samples, 40, normalise="nemo").T, atol=1e-5, rtol=1e-5)


def test_the_tokenizer_writes_and_reads_as_theirs(ours):
    theirs = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    for text in TEXTS[:4]:
        pieces = [ours.tokenizer.piece(token) for token in ours.tokenizer.encode(text)]
        assert pieces == [theirs.id_to_piece(token) for token in theirs.encode(text)]
        assert ours.decode_text(ours.tokenizer.encode(text)) == text


def test_pieces_of_bytes_stay_bytes():
    names = ["<unk>", *(f"<0x{n:02X}>" for n in range(256)), "\u2581", "a", "\u2581a"]
    pieces = from_merges({name: n for n, name in enumerate(names)}, [("\u2581", "a")], len(names))
    tokenizer, places = own_tokenizer(pieces, ["en"])
    assert tokenizer.decode(tokenizer.encode("a \u00e9")) == "a \u00e9"
    assert tokenizer.piece(places[-1]) == "\u2581a"
    with pytest.raises(SprachbundError, match="no piece number 260"):
        from_merges({name: n for n, name in enumerate(names)}, [], 261)


def test_it_is_a_model_like_any_other(ours, tmp_path):
    save(ours, tmp_path)
    again = load(tmp_path)
    assert again.pairs() == {("en", "en")}
    assert again.prompt(Target(language="en")) == []
    features = again.features([sound()])
    memory, before = again.encode(features), ours.encode(features)
    assert torch.equal(memory.states, before.states)


@torch.no_grad()
def test_a_checkpoint_without_biases_and_with_a_ctc_head(tmp_path):
    theirs = made_model(biases=False, seed=3)
    weights, head = nemo_weights(theirs), torch.randn(NUM_PIECES + 1, 32, 1)
    weights |= {
        "ctc_decoder.decoder_layers.0.weight": head,
        "ctc_decoder.decoder_layers.0.bias": head[:, 0, 0],
    }
    path = write_nemo(tmp_path / "x.nemo", nemo_config(theirs), weights, sentencepiece_model())
    ours = assemble(read_nemo(path), ["en", "de"])
    features = mel()
    expected = theirs.encoder(features, num_lookahead_tokens=13).last_hidden_state
    states, _ = ours.encoder(features, torch.tensor([features.shape[1]]))
    torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(ours.ctc_head.weight[0], head[-1, :, 0])
    assert torch.equal(ours.ctc_head.weight[-1], head[-2, :, 0])
    assert ours.config.ctc_weight == 0.5
    assert ours.pairs() == {("en", "en"), ("de", "de")}


def changed(config: dict, section: str, **values: object) -> dict:
    return {**config, section: {**config[section], **values}}


def test_what_cannot_be_read_is_said(theirs, tmp_path):
    config, weights, tokenizer = nemo_config(theirs), nemo_weights(theirs), sentencepiece_model()
    path = tmp_path / "x.nemo"

    def refused(message: str, config=config, weights=weights, tokenizer=tokenizer) -> None:
        write_nemo(path, config, weights, tokenizer)
        with pytest.raises(SprachbundError, match=message) as error:
            assemble(read_nemo(path), ["en"])
        assert "\n" not in str(error.value)

    refused(
        "encoder.subsampling is 'striding'; only 'dw_striding'",
        changed(config, "encoder", subsampling="striding"),
    )
    refused("normalize is 'per_feature'", changed(config, "preprocessor", normalize="per_feature"))
    refused(
        "lacks encoder.att_context_style",
        {**config, "encoder": {k: v for k, v in config["encoder"].items() if k != "att_context_style"}},
    )
    refused("equally far back", changed(config, "encoder", att_context_size=[[70, 13], [20, 1]]))
    refused(
        "sizes make no model: a tier of 5 frames back", changed(config, "encoder", att_context_size=[5, 13])
    )
    refused("sizes that are none", changed(config, "encoder", n_layers=None))
    refused("writes durations", changed(config, "joint", num_extra_outputs=5))
    refused("n_layers|has no weight for encoder.layers.2", changed(config, "encoder", n_layers=3))
    refused("that the model has not got", changed(config, "encoder", n_layers=1))
    refused(
        r"shape \(41, 24\)|asks for|has shape",
        changed(config, "decoder", prednet={"pred_hidden": 16, "pred_rnn_layers": 2}),
    )
    refused("is not YAML", b"\t{")
    refused("holds no configuration", b"just text")
    refused("model_weights.ckpt cannot be read", weights=b"nothing of the kind")
    refused("something else than weights", weights={"a": 1})
    refused("of a kind not known", weights={**weights, "adapter.0.weight": torch.zeros(1)})
    refused("no 0a1b_tokenizer.model", tokenizer=None)
    refused("no SentencePiece model", tokenizer=b"\xff\xfe\xfd")
    fewer = {**weights, "joint.joint_net.2.weight": weights["joint.joint_net.2.weight"][:-1]}
    refused("40 rows, the tokenizer 41", weights=fewer)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("touched-by-evil"),))


def test_nothing_in_a_file_is_run(theirs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_nemo(tmp_path / "x.nemo", nemo_config(theirs), {"a": Evil()}, sentencepiece_model())
    with pytest.raises(
        SprachbundError, match=r"model_weights\.ckpt cannot be read \(it asks for .*; take a copy"
    ):
        read_nemo(path)
    assert not Path("touched-by-evil").exists()


def test_broken_archives(theirs, tmp_path):
    path = tmp_path / "x.nemo"
    with pytest.raises(SprachbundError, match="there is no file"):
        read_nemo(path)
    path.write_bytes(b"no archive")
    with pytest.raises(SprachbundError, match=r"not a whole .nemo archive"):
        read_nemo(path)
    write_nemo(path, nemo_config(theirs), nemo_weights(theirs), sentencepiece_model())
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(SprachbundError, match=r"not a whole .nemo archive|has no model_weights"):
        read_nemo(path)


def test_directories_that_cannot_be_read(theirs, tmp_path):
    with pytest.raises(SprachbundError, match=r"has no config.json"):
        read_transformers(tmp_path)
    folder = write_transformers(tmp_path, theirs)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"nemotron_asr_streaming"', '"parakeet_tdt"'))
    with pytest.raises(SprachbundError, match="names the model 'parakeet_tdt'"):
        read_transformers(folder)
    (folder / "config.json").write_text(config)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SprachbundError, match=r"has no tokenizer.json"):
        read_transformers(folder)
    (folder / "model.safetensors").write_bytes(b"1234")
    with pytest.raises(SprachbundError, match="not a whole safetensors file"):
        read_transformers(folder)
