"""Exported Parakeet and Canary give the tokens and texts of torch: in ONNX Runtime by loops here, and in onnx-asr."""

import copy
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from sprachbund.compression.fastconformer_onnx import LAYOUTS, check_exportable, export, vocabulary
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from sprachbund.models.card import Card
from sprachbund.models.fastconformer import Canary, Parakeet
from sprachbund.models.fastconformer.tokens import FastConformerTokens
from sprachbund.models.io import load
from tests.models.fastconformer.support import LANGUAGES, make, make_tokenizer, sound
from tests.stories.support import command

pytestmark = pytest.mark.slow  # a graph is traced for some ten seconds, whatever the size of the model

SOUNDS = [sound(2.13, 1), sound(3.4, 2), sound(0.7, 3), sound(0.05, 4), sound(5.0, 5)]
ONNX_ASR = Path(__file__).parents[2] / "build" / "onnx-asr"


def made(root: Path, kind: str) -> Parakeet | Canary:
    """A model of random weights that writes varied texts, without special tokens: onnx-asr hides none of them."""
    model = make(root, kind, num_mel_bins=80, seed=10 if kind == "canary" else 0).model
    if isinstance(model, Canary):
        with torch.no_grad():
            model.decoder.logits_bias[sorted(model.tokens.special)] -= 100.0
            model.decoder.logits_bias[model.end_token] += 104.0
            for name, weight in model.decoder.named_parameters():
                if re.search(r"attention\.query\.weight|cross_attention\.out\.weight", name):
                    weight.mul_(4.0)
    return model


@dataclass(frozen=True)
class Exported:
    """A model and its directory, run by loops that know nothing but the layout."""

    model: Parakeet | Canary
    directory: Path
    bits: int = 32

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.directory / "config.json").read_text())

    @cached_property
    def sessions(self) -> dict[str, Any]:
        suffix = ".int8.onnx" if self.bits == 8 else ".onnx"
        paths = self.directory.glob(f"*{suffix}")
        return {path.name.removesuffix(suffix): onnxruntime.InferenceSession(path) for path in paths}

    def inputs(self, sounds: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Our features, as the graphs take them."""
        features = self.model.features(sounds)
        mel = features.values.transpose(1, 2).contiguous().numpy()
        return {"audio_signal": mel, "length": features.num_frames.numpy()}

    def tokens(self, sounds: list[np.ndarray], prompt: list[int]) -> list[tuple[int, ...]]:
        """Greedy tokens of a batch."""
        inputs = self.inputs(sounds)
        if self.config["model_type"] == "nemo-conformer-ctc":
            (logprobs,) = self.sessions["model"].run(["logprobs"], inputs)
            return [
                self._collapsed(row[: -(-count // 8)].argmax(-1))
                for row, count in zip(logprobs, inputs["length"].tolist(), strict=True)
            ]
        if self.config["model_type"] == "nemo-conformer-aed":
            return self._attended(inputs, prompt)
        states, lengths = self.sessions["encoder-model"].run(["outputs", "encoded_lengths"], inputs)
        return [self._walked(row[:, :count]) for row, count in zip(states, lengths.tolist(), strict=True)]

    @property
    def blank(self) -> int:
        return [line.split(" ")[0] for line in self.lines].index("<blk>")

    @property
    def lines(self) -> list[str]:
        return (self.directory / "vocab.txt").read_text().split("\n")[:-1]

    def _collapsed(self, path: np.ndarray) -> tuple[int, ...]:
        before = [self.blank, *path[:-1].tolist()]
        return tuple(t for t, last in zip(path.tolist(), before, strict=True) if t not in (last, self.blank))

    def _walked(self, states: np.ndarray) -> tuple[int, ...]:
        """Of a transducer, with or without durations; states (D, S)."""
        session, size = self.sessions["decoder_joint-model"], len(self.lines)
        shapes = {each.name: each.shape for each in session.get_inputs()}
        layers, _, width = shapes["input_states_1"]
        memory = [np.zeros((layers, 1, width), np.float32)] * 2
        tokens: list[int] = []
        frame = symbols = 0
        while frame < states.shape[1]:
            last = tokens[-1] if tokens else self.blank
            logits, _, *after = session.run(
                None,
                {
                    "encoder_outputs": states[None, :, frame : frame + 1],
                    "targets": np.array([[last]], np.int32),
                    "target_length": np.ones(1, np.int32),
                    "input_states_1": memory[0],
                    "input_states_2": memory[1],
                },
            )
            of_tokens, of_durations = np.split(logits[0, 0, 0], [size])
            token = int(of_tokens.argmax())
            step = int(of_durations.argmax()) if len(of_durations) else int(token == self.blank)
            if token != self.blank:
                tokens.append(token)
                memory, symbols = after, symbols + 1
            if step == 0 and (token == self.blank or symbols == self.config["max_tokens_per_step"]):
                step = 1
            frame, symbols = frame + step, 0 if step else symbols
        return tuple(tokens)

    def _attended(self, inputs: dict[str, np.ndarray], prompt: list[int]) -> list[tuple[int, ...]]:
        encoded, mask = self.sessions["encoder-model"].run(["encoder_embeddings", "encoder_mask"], inputs)
        session = self.sessions["decoder-model"]
        (memory,) = (each.shape for each in session.get_inputs() if each.name == "decoder_mems")
        held = np.zeros((memory[0], len(encoded), 0, memory[3]), np.float32)
        end = [line.split(" ")[0] for line in self.lines].index("<|endoftext|>")
        rows, new = [[*prompt] for _ in encoded], np.array([prompt] * len(encoded))
        while len(rows[0]) < self.config["max_sequence_length"] and not all(end in row for row in rows):
            logits, held = session.run(
                ["logits", "decoder_hidden_states"],
                {
                    "input_ids": new,
                    "encoder_embeddings": encoded,
                    "encoder_mask": mask,
                    "decoder_mems": held,
                },
            )
            new = logits[:, -1:].argmax(-1)
            for row, token in zip(rows, new[:, 0].tolist(), strict=True):
                row.append(token)
        ends = [row.index(end) if end in row else len(row) for row in rows]
        return [tuple(row[len(prompt) : count]) for row, count in zip(rows, ends, strict=True)]


@pytest.fixture(scope="module", params=LAYOUTS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    root = tmp_path_factory.mktemp("onnx")
    model = made(root, request.param)
    export(model, root / "exported", Card(name="made", licence="CC-BY-4.0"))
    return Exported(model, root / "exported")


@pytest.fixture(scope="module")
def in_8_bits(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """By the command, of a directory with a card."""
    root = tmp_path_factory.mktemp("onnx")
    checkpoint = make(root, "parakeet_tdt", num_mel_bins=80)
    card = Card(name="theirs", licence="CC-BY-4.0", source_languages=LANGUAGES, target_languages=LANGUAGES)
    card.write(checkpoint.directory)
    done = command("export", checkpoint.directory, "--out", root / "exported", "--bits", "8", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["model_type"] == "nemo-conformer-tdt"
    return Exported(checkpoint.model, root / "exported", 8)


@pytest.fixture
def onnx_asr(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if not ONNX_ASR.exists():
        pytest.skip("no onnx-asr here; scripts/onnx_asr.sh installs it")
    monkeypatch.syspath_prepend(ONNX_ASR)
    import onnx_asr

    yield onnx_asr
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnx_asr"]:
        del sys.modules[name]


TARGET = Target(language="de", source="de")


def searched(model: Parakeet | Canary, sounds: list[np.ndarray]) -> list[tuple[int, ...]]:
    """Our greedy tokens, of a batch."""
    memory = model.encode(model.features(sounds))
    rows = search(model, memory, [[TARGET]] * len(sounds), DecodingOptions())
    return [row[0].tokens for row in rows]


@torch.no_grad()
def test_onnx_runtime_writes_the_tokens_of_torch(pair: Exported) -> None:
    expected = searched(pair.model, SOUNDS)
    prompt = pair.model.prompt(TARGET)
    assert pair.tokens(SOUNDS, prompt) == expected
    for samples, row in zip(SOUNDS, expected, strict=True):
        assert pair.tokens([samples], prompt) == [row]
    assert len(set(expected)) > 2
    assert max(len(set(row)) for row in expected) > 2
    assert not isinstance(pair.model, Canary) or len({len(row) for row in expected}) > 2


def spaced(text: str) -> str:
    """What onnx-asr makes of a text: it takes away a space in front of what is no letter or digit."""
    return re.sub(r"\s(?!\w)", "", text)


@torch.no_grad()
def test_onnx_asr_writes_the_text_of_torch(
    pair: Exported, onnx_asr: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pair.model
    theirs = onnx_asr.load_model(LAYOUTS[model.name], pair.directory)
    sounds = [sound(2.13, 1), sound(3.4, 2), sound(0.7, 3), sound(5.0, 5)]
    options: dict[str, Any] = {}
    if isinstance(model, Canary):
        # Their prompt begins with a token more.
        begun = [model.tokens.token("▁"), *model.prompt(TARGET)]
        monkeypatch.setattr(model, "prompt", lambda target: begun)
        options = {"language": "de", "target_language": "de"}
    expected = [spaced(model.decode_text(row)) for row in searched(model, sounds)]
    assert [theirs.recognize(samples, **options) for samples in sounds] == expected
    assert len(set(expected)) > 2
    if not isinstance(model, Canary):  # theirs writes on in rows that have ended while others have not
        assert theirs.recognize(sounds, **options) == expected


def test_a_directory_says_what_it_is(pair: Exported) -> None:
    config = pair.config
    digests = config.pop("sha256")
    assert digests == {
        path.name: sha256(path.read_bytes()).hexdigest()
        for path in pair.directory.iterdir()
        if path.name not in ("config.json", "card.json")
    }
    limit = {"canary": {"max_sequence_length": 64}, "parakeet_ctc": {}}
    assert config == {
        "model_type": LAYOUTS[pair.model.name],
        "features_size": 80,
        "subsampling_factor": 8,
        **limit.get(pair.model.name, {"max_tokens_per_step": 10}),
    }
    card = Card.read(pair.directory)
    assert card is not None
    assert (card.licence, card.bits) == ("CC-BY-4.0", 32)
    with pytest.raises(
        SprachbundError, match=r"has graphs for onnx-asr .* give the model that they were exported"
    ):
        load(pair.directory)


@torch.no_grad()
def test_in_8_bits(in_8_bits: Exported) -> None:
    graph = onnx.load(in_8_bits.directory / "encoder-model.int8.onnx").graph
    kinds = Counter(node.op_type for node in graph.node)
    # Of a layer: two feed-forwards, what attention makes of the sound, and two of a convolution.
    assert kinds["MatMulInteger"] >= 10 * len(in_8_bits.model.encoder.layers)
    states, counts = in_8_bits.sessions["encoder-model"].run(None, in_8_bits.inputs(SOUNDS))
    memory = in_8_bits.model.encode(in_8_bits.model.features(SOUNDS))
    for row, expected, count in zip(states, memory.states.numpy(), counts.tolist(), strict=True):
        error = np.abs(row[:, :count].T - expected[:count]).mean() / np.abs(expected[:count]).mean()
        assert 0 < error < 0.1


def test_onnx_asr_loads_8_bits(in_8_bits: Exported, onnx_asr: Any) -> None:
    theirs = onnx_asr.load_model("nemo-conformer-tdt", in_8_bits.directory, quantization="int8")
    rows = in_8_bits.tokens(SOUNDS[:2], [])
    texts = [spaced(in_8_bits.model.decode_text(row)) for row in rows]
    assert [theirs.recognize(samples) for samples in SOUNDS[:2]] == texts
    assert all(texts)


def test_the_command(in_8_bits: Exported) -> None:
    """`in_8_bits` is made by it."""
    card = Card.read(in_8_bits.directory)
    assert card is not None
    assert (card.licence, card.bits, card.source_languages) == ("CC-BY-4.0", 8, LANGUAGES)
    assert card.training["made_from"] == {"model": "theirs", "by": "export"}
    names = {"encoder-model.int8.onnx", "decoder_joint-model.int8.onnx", "vocab.txt"}
    assert {path.name for path in in_8_bits.directory.iterdir()} == {*names, "config.json", "card.json"}


def test_names_of_tokens(pair: Exported) -> None:
    names = [line.split(" ") for line in pair.lines]
    assert [number for _, number in names] == [str(n) for n in range(pair.model.tokens.size)]
    blank = None if isinstance(pair.model, Canary) else pair.model.blank
    expected = [
        "<blk>" if number == blank else pair.model.tokens.tokenizer.id_to_token(number)
        for number in range(len(names))
    ]
    assert [name for name, _ in names] == expected


def test_a_tokenizer_for_each_language(tmp_path: Path) -> None:
    model = made(tmp_path, "canary")
    special, text = make_tokenizer(special=True, blank=None), make_tokenizer(special=False, blank=None)
    size = special.get_vocab_size() + 2 * text.get_vocab_size()
    model.tokens = FastConformerTokens(special, size + 1, "made", of_languages={"en": text, "de": text})
    parts = [[one.id_to_token(n) for n in range(one.get_vocab_size())] for one in (special, text, text)]
    assert vocabulary(model) == [*parts[0], *parts[1], *parts[2], f"<|unused_{size}|>"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Parakeet | Canary]:
    """A model of a kind, to be changed."""
    root = tmp_path_factory.mktemp("small")
    models = {kind: made(root, kind) for kind in ("parakeet_tdt", "canary")}
    return lambda kind: copy.deepcopy(models[kind])


def test_models_that_onnx_asr_cannot_run(small: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(SprachbundError, match="no layout for a model of the kind conformer"):
        check_exportable(load())
    with pytest.raises(SprachbundError, match="no layout for a model of the kind cohere_asr"):
        check_exportable(made(tmp_path, "cohere_asr"))
    with pytest.raises(SprachbundError, match="features of 80 or 128 mel bins; this model hears 40"):
        check_exportable(make(tmp_path, "parakeet_ctc").model)
    timed = small("parakeet_tdt")
    timed.transducer.shape = replace(timed.transducer.shape, durations=(0, 2, 4))
    with pytest.raises(SprachbundError, match=r"from 0 on, one by one; those of this model are \[0, 2, 4\]"):
        check_exportable(timed)


def test_vocabularies_that_onnx_asr_cannot_read(small: Callable[[str], Any]) -> None:
    spaced_out = small("parakeet_tdt")
    tokenizer = make_tokenizer(special=True, blank="<blank>")
    tokenizer.add_tokens(["of two words"])
    spaced_out.tokens = FastConformerTokens(tokenizer, tokenizer.get_vocab_size(), "made")
    with pytest.raises(
        SprachbundError, match=r"the token 65, 'of two words', cannot be written into vocab.txt"
    ):
        check_exportable(spaced_out)
    unprompted = small("canary")
    unprompted.tokens = FastConformerTokens(make_tokenizer(special=False, blank=None), 64, "made")
    with pytest.raises(SprachbundError, match=r"no token <\|startofcontext\|>, which onnx-asr begins"):
        check_exportable(unprompted)
    other_end = small("canary")
    other_end.end_token = 0
    with pytest.raises(SprachbundError, match=r"end with the token '<unk>', and onnx-asr waits for"):
        check_exportable(other_end)


def test_what_the_command_refuses(tmp_path: Path) -> None:
    directory = make(tmp_path, "parakeet_ctc").directory
    for said, options in (
        ("have 32 bits or 8; leave --bits out", ["--bits", "16"]),
        ("80 or 128 mel bins", []),
        ("ggml is for Whisper models; this model is parakeet_ctc", ["--format", "ggml"]),
    ):
        done = command("export", directory, "--out", tmp_path / "out", *options)
        assert done.code != 0
        assert len(done.error_lines) == 1
        assert said in done.err
        assert not (tmp_path / "out").exists()
