"""Archives of NeMo's layout beside directories of transformers with the same weights: all is equal."""

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from torch import Tensor, nn
from transformers.convert_slow_tokenizer import ParakeetConverter

from sprachbund.compression.smaller import convert
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from sprachbund.models.conformer.checkpoints import read_sentencepiece
from sprachbund.models.fastconformer import Canary, load, nemo, save
from sprachbund.models.fastconformer import config as fastconformer_config
from sprachbund.models.fastconformer.nemo import read
from sprachbund.models.fastconformer.tokens import from_sentencepiece
from sprachbund.models.nemo_archive import open_archive
from tests.models.fastconformer.archives import nemo_config, nemo_weights, sentencepiece_model, write_archive
from tests.models.fastconformer.support import LANGUAGES, SENTENCES, SPECIAL, Checkpoint, make, sound

pytestmark = pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
SOUNDS = [sound(2.13, 1), sound(0.7, 3)]
KINDS = ("parakeet_ctc", "parakeet_rnnt", "parakeet_tdt", "canary")
TOKENIZER = "0a1b_tokenizer.model"


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make(tmp_path_factory.mktemp("hf"), request.param, biases=request.param != "parakeet_tdt")


@pytest.fixture(scope="module")
def tdt(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make(tmp_path_factory.mktemp("hf"), "parakeet_tdt")


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make(tmp_path_factory.mktemp("hf"), "canary")


def files_of(made: Checkpoint) -> dict[str, bytes]:
    return {TOKENIZER: sentencepiece_model(made.kind != "parakeet_ctc")}


def archive_of(made: Checkpoint, folder: Path, **options: Any) -> Path:
    return write_archive(
        folder / "model.nemo", nemo_config(made), nemo_weights(made), files_of(made), **options
    )


def tokens_of(model: Any) -> list[tuple[int, ...]]:
    memory = model.encode(model.features(SOUNDS))
    asked = [[Target(language="de", source="de")]] * len(SOUNDS)
    options = DecodingOptions(max_tokens=20 if isinstance(model, Canary) else None)
    return [row[0].tokens for row in search(model, memory, asked, options)]


@torch.inference_mode()
def test_both_intakes_give_the_same_model(made: Checkpoint, tmp_path: Path) -> None:
    model = read(open_archive(archive_of(made, tmp_path)), tuple(LANGUAGES))
    expected = made.model.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert tokens_of(model) == tokens_of(made.model)
    save(model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert tokens_of(again) == tokens_of(made.model)
    assert again.decode_text(again.tokens.encode("the cat runs")) == "the cat runs"


def test_transformers_loads_what_was_converted(made: Checkpoint, tmp_path: Path) -> None:
    convert(str(archive_of(made, tmp_path)), tmp_path / "out", LANGUAGES)
    theirs = (
        getattr(transformers, made.hf_model.config.architectures[0]).from_pretrained(tmp_path / "out").eval()
    )
    result, wanted = biases_joined(theirs.state_dict()), biases_joined(made.hf_model.state_dict())
    assert result.keys() == wanted.keys()
    assert all(torch.allclose(value, wanted[name], atol=1e-6) for name, value in result.items())
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = processor.feature_extractor([SOUNDS[0]], sampling_rate=16_000, return_tensors="pt")
    assert torch.equal(inputs["input_features"], made.inputs([SOUNDS[0]])["input_features"])
    ids = processor.tokenizer("the cat runs", add_special_tokens=False).input_ids
    assert ids == load(tmp_path / "out").tokens.encode("the cat runs")


def biases_joined(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with the two biases of a joint network in one, which are added to each other anyway."""
    weights = dict(weights)
    if (of_tokens := weights.pop("decoder.decoder_projector.bias", None)) is not None:
        weights["encoder_projector.bias"] = weights["encoder_projector.bias"] + of_tokens
    return weights


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("special", [True, False])
def test_a_tokenizer_writes_and_reads_as_sentencepiece(kind: str, special: bool, tmp_path: Path) -> None:
    data = sentencepiece_model(special, kind=kind, size=96 if kind == "bpe" else 80)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    ours = from_sentencepiece(read_sentencepiece(data, "x").model, "x")
    ours.encode_special_tokens = True
    for text in (*SENTENCES, "the  house ", "à la maison, der Hund", "ﬁne"):
        assert ours.encode(text).ids == theirs.encode(text)
        assert ours.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))
    if kind == "bpe":
        (tmp_path / "t.model").write_bytes(data)
        converted = ParakeetConverter(str(tmp_path / "t.model")).converted()
        assert [converted.encode(text).ids for text in SENTENCES] == [ours.encode(t).ids for t in SENTENCES]


def test_a_hybrid_has_two_heads(tdt: Checkpoint, tmp_path: Path) -> None:
    size = tdt.hf_model.config.vocab_size
    head = torch.randn(size, 32, 1, generator=torch.Generator().manual_seed(1))
    weights = nemo_weights(tdt) | {
        "ctc_decoder.decoder_layers.0.weight": head,
        "ctc_decoder.decoder_layers.0.bias": head[:, 0, 0],
    }
    config = nemo_config(tdt, aux_ctc={"decoder": {"num_classes": size - 1}, "ctc_loss_weight": 0.3})
    path = write_archive(tmp_path / "h.nemo", config, weights, files_of(tdt))
    assert tokens_of(read(open_archive(path), tuple(LANGUAGES))) == tokens_of(tdt.model)
    by_ctc = read(open_archive(path), tuple(LANGUAGES), "ctc")
    assert by_ctc.name == "parakeet_ctc"
    memory = by_ctc.encode(by_ctc.features(SOUNDS))
    expected = (memory.states @ head[..., 0].T + head[:, 0, 0]).log_softmax(-1)
    result = by_ctc.ctc_log_probs(memory, [[Target(language="de")]] * 2)  # type: ignore[union-attr]
    torch.testing.assert_close(result, expected)


def test_a_canary_with_a_tokenizer_for_each_language(canary: Checkpoint, tmp_path: Path) -> None:
    """As canary-1b-flash: special tokens first, then those of each language in turn."""
    languages = {
        tag: sentencepiece_model(False, size=30, sentences=[sentence])
        for tag, sentence in zip(("en", "de"), SENTENCES, strict=False)
    }
    named = {"spl_tokens": sentencepiece_model(True), **languages}
    sizes = [len(sentencepiece.SentencePieceProcessor(model_proto=data)) for data in named.values()]
    config = nemo_config(canary)
    config["tokenizer"] = {
        "type": "agg",
        "langs": {tag: {"type": "bpe", "model_path": f"nemo:{tag}_tokenizer.model"} for tag in named},
    }
    config["head"]["num_classes"] = sum(sizes)
    weights = nemo_weights(canary)
    for name in ("transf_decoder._embedding.token_embedding.weight", "log_softmax.mlp.layer0.weight"):
        weights[name] = torch.randn(sum(sizes), 32, generator=torch.Generator().manual_seed(4))
    weights["log_softmax.mlp.layer0.bias"] = torch.zeros(sum(sizes))
    files = {f"{tag}_tokenizer.model": data for tag, data in named.items()}
    path = write_archive(tmp_path / "x.nemo", config, weights, files)
    plain = read(open_archive(path))
    assert plain.source_languages == ("en", "de")  # those that have a tokenizer
    assert isinstance(plain.memory_projection, nn.Identity)
    offset = sizes[0] + sizes[1]
    theirs = sentencepiece.SentencePieceProcessor(model_proto=languages["de"])
    assert plain.tokens.encode(SENTENCES[1], "de") == [offset + n for n in theirs.encode(SENTENCES[1])]
    mixed = [plain.end_token, *plain.tokens.encode(SENTENCES[1], "de"), *plain.tokens.encode("the cat", "en")]
    assert plain.decode_text(mixed) == f"{SENTENCES[1]} the cat"
    save(plain, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.tokens.encode("the cat", "en") == plain.tokens.encode("the cat", "en")
    assert again.prompt(Target(language="de", source="en")) == plain.prompt(
        Target(language="de", source="en")
    )
    with pytest.raises(SprachbundError, match="no tokenizer for 'fr'; there is one for each of en, de"):
        plain.tokens.encode("le chat", "fr")


def test_a_projection_between_encoder_and_decoder(canary: Checkpoint, tmp_path: Path) -> None:
    """As canary-180m-flash: equal to transformers' decoder over states of its encoder that were projected by hand."""
    slim = make(tmp_path, "canary", seed=5, width=16)
    projection = nn.Linear(16, 32)
    weights = {n: w for n, w in nemo_weights(canary).items() if not n.startswith("encoder.")}
    weights |= {n: w for n, w in nemo_weights(slim).items() if n.startswith("encoder.")}
    weights |= {f"encoder_decoder_proj.{n}": w.detach() for n, w in projection.named_parameters()}
    config = nemo_config(canary, encoder=nemo_config(slim)["encoder"])
    path = write_archive(tmp_path / "x.nemo", config, weights, files_of(canary))
    model = read(open_archive(path), tuple(LANGUAGES))
    assert isinstance(model, Canary)
    prompt = torch.tensor([model.prompt(Target(language="de", source="de"))])
    with torch.no_grad():
        inputs = slim.inputs(SOUNDS[:1])
        states = slim.hf_model.model.encoder(**inputs).last_hidden_state
        memory = projection(states)
        decoder = canary.hf_model.model.decoder
        out = decoder(input_ids=prompt, encoder_hidden_states=memory).last_hidden_state
        expected = canary.hf_model.proj_out(out)
        ours = model.encode(model.features(SOUNDS[:1]))
        count = ours.states.shape[1]
        torch.testing.assert_close(ours.states, memory[:, :count], atol=2e-3, rtol=1e-3)
        result = model.step(prompt, model.start(ours))
    torch.testing.assert_close(result, expected, atol=2e-3, rtol=1e-3)
    save(model, tmp_path / "saved")
    assert tokens_of(load(tmp_path / "saved")) == tokens_of(model)


def test_what_cannot_be_read_is_said(tdt: Checkpoint, canary: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "x.nemo"

    def refused(
        message: str,
        made: Checkpoint,
        section: str = "",
        head: Any = None,
        tokenizer: Any = ...,
        drop: str = "",
        **changes: Any,
    ) -> None:
        config, weights, files = nemo_config(made), nemo_weights(made), files_of(made)
        if section:
            config[section] = {**config[section], **changes}
        else:
            config |= changes
        weights = {name: value for name, value in weights.items() if not (drop and drop in name)}
        files = files if tokenizer is ... else ({TOKENIZER: tokenizer} if tokenizer else {})
        write_archive(path, config, weights, files)
        with pytest.raises(SprachbundError, match=message) as error:
            read(open_archive(path), tuple(LANGUAGES), head)
        assert "\n" not in str(error.value)

    refused("encoder.subsampling is 'striding'", tdt, "encoder", subsampling="striding")
    refused(
        "self_attention_model is 'rel_pos_local_attn'",
        tdt,
        "encoder",
        self_attention_model="rel_pos_local_attn",
    )
    refused("normalize is 'NA'", tdt, "preprocessor", normalize="NA")
    refused("no head of the kind ctc; its heads are transducer", tdt, head="ctc")
    refused("attention decoder alone", canary, head="ctc")
    refused("decoding.durations is", tdt, "decoding", durations=[0, 1])
    refused("only equal ones", tdt, "joint", jointnet={"joint_hidden": 16, "activation": "relu"})
    refused("of the type 'wpe'", tdt, "tokenizer", type="wpe")
    refused("no 0a1b_tokenizer.model", tdt, tokenizer=None)
    refused("no SentencePiece model", tdt, tokenizer=b"\xff\xfe")
    refused("sizes that are none", tdt, "encoder", n_layers=None)
    refused("lacks decoder.prednet", tdt, decoder={})
    refused("sizes that are none", canary, "head", num_classes=[])
    refused("prompt_format is 'canary'", canary, prompt_format="canary")
    refused("no position vectors", canary, drop="pos_enc")
    refused("encoder.layers.1", tdt, drop="encoder.layers.1.norm_out.weight")
    refused("holds a nemo.x; Parakeet with CTC", tdt, joint=None, decoder={}, target="nemo.x")
    write_archive(path, nemo_config(tdt), nemo_weights(tdt), files_of(tdt))
    with pytest.raises(SprachbundError, match="does not name the model's languages"):
        read(open_archive(path))


def test_a_usual_number_of_tokens_says_nothing_about_the_languages(
    tdt: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive_of(tdt, tmp_path)
    size = tdt.hf_model.config.vocab_size
    monkeypatch.setitem(fastconformer_config._PUBLISHED, ("parakeet_tdt", size), ["en"])
    assert read(open_archive(path)).source_languages == ("en",)
    monkeypatch.setattr(nemo, "_USUAL_TOKENS", size - 1)
    with pytest.raises(SprachbundError, match="does not say which languages it hears, and models of many"):
        read(open_archive(path))
    assert read(open_archive(path), ("sv",)).source_languages == ("sv",)


def test_positions_that_are_no_sinusoids(canary: Checkpoint, tmp_path: Path) -> None:
    weights = nemo_weights(canary)
    weights["transf_decoder._embedding.position_embedding.pos_enc"].add_(1.0)
    path = write_archive(tmp_path / "x.nemo", nemo_config(canary), weights, files_of(canary))
    with pytest.raises(SprachbundError, match="no sinusoids"):
        read(open_archive(path), tuple(LANGUAGES))


def test_a_compressed_archive(tdt: Checkpoint, tmp_path: Path) -> None:
    path = archive_of(tdt, tmp_path, mode="w:gz")
    assert tokens_of(read(open_archive(path), tuple(LANGUAGES))) == tokens_of(tdt.model)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(SprachbundError, match=r"not a whole .nemo archive"):
        open_archive(path)


def test_a_damaged_table_of_characters_is_refused() -> None:
    model = read_sentencepiece(sentencepiece_model(False), "x").model
    model.normalizer_spec.precompiled_charsmap = b"\xff" * 9
    with pytest.raises(SprachbundError, match="cannot be read"):
        from_sentencepiece(model, "x")


def test_special_tokens_are_no_text() -> None:
    tokenizer = from_sentencepiece(read_sentencepiece(sentencepiece_model(True), "x").model, "x")
    special = {n for n, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    assert special == set(range(len(SPECIAL)))
