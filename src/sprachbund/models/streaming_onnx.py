"""Streaming transducers that ONNX Runtime computes: the same model to the searches, to live text and to the commands.

Shapes: B rows, T frames, C frames of a chunk, M mel bins, D width, J width of the joint network, V vocabulary.
"""

import ctypes
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from weakref import WeakSet

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.audio.constants import HOP, SAMPLE_RATE
from sprachbund.errors import SprachbundError, first_line
from sprachbund.models.base import Capabilities
from sprachbund.models.conformer import Conformer
from sprachbund.models.conformer.config import ConformerConfig
from sprachbund.models.weights import PackedLinears, packed_linears
from sprachbund.nn.feed_forward import Route
from sprachbund.nn.limits import VOCABULARY, Frames
from sprachbund.nn.streaming_conformer import (
    LEAD,
    MARGIN,
    SUBSAMPLING,
    ChunkEncoder,
    StreamingEncoder,
    StreamingShape,
    StreamState,
    Tier,
)
from sprachbund.nn.transducer import Transducer, TransducerShape, TransducerState
from sprachbund.text.tokenizer import Tokenizer
from sprachbund.util.devices import CPU
from sprachbund.util.files import file_sha256, read_object, validate, write_json

# config.json of an exported model: sizes and languages, tiers, and the graphs with inputs and outputs.
#
# Whoever runs the graphs without this package needs no more than this file, the graphs and the tokenizer.

FAMILY = "streaming_onnx"
GRAPHS = ENCODER, PROJECTION, PREDICTION, JOINT, LANGUAGE = (
    "encoder",
    "projection",
    "prediction",
    "joint",
    "language",
)
STATE = ("stem.0", "stem.1", "stem.2", "keys", "values", "convolution", "num_past")
"""Tensors of the encoder's state, in the order in which they go in and out."""


_Name = Annotated[str, Field(pattern=r"^[\w-]+(\.[\w-]+)*$", max_length=255)]
"""Name of a file in the model's directory."""
_Token = Annotated[int, Field(strict=True, ge=0, lt=VOCABULARY.most)]
_Size = Annotated[int, Field(strict=True, ge=0, le=2**31)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Value(_Strict):
    """An input or output.

    Attributes:
        name: name in the graph.
        type: type of its numbers.
        shape: numbers, and names of sizes that may differ: "batch", "chunk" (frames), "8*chunk" (mel frames).
    """

    name: str
    type: Literal["float32", "int32", "int64"] = "float32"
    shape: tuple[_Size | str, ...]


class Graph(_Strict):
    """A file and what goes in and out, in order; a state that goes in is named as what comes out, with `next.`."""

    file: _Name
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


class TierDescribed(_Strict):
    """A chunk of `chunk` frames of 80 ms takes `num_mel` mel frames; text is at most `latency_ms` behind."""

    right_context: Frames
    chunk: Frames
    num_mel: _Size
    past: Frames
    latency_ms: _Size


class Description(_Strict):
    """Description of an exported model.

    Attributes:
        config: sizes and languages of the model it was made from.
        tiers: the first is the one for whole recordings.
        graphs: by name.
        blank: token that takes a step in time; it also begins every text.
        language_tokens: token that the prediction network reads before it begins, by the language wanted; none where
            the model writes what is spoken.
        tokenizer: file of its SentencePiece model.
        packed: packing of the encoder's linear layers, where they are packed.
        lead: mel frames of zeros before the sound of a stream, in its first chunk.
        sha256: SHA-256 of the files beside this one, by name; older directories have none.
    """

    config: ConformerConfig
    tiers: tuple[TierDescribed, ...]
    graphs: dict[str, Graph]
    blank: _Token
    language_tokens: dict[str, _Token]
    tokenizer: _Name = "tokenizer.model"
    packed: PackedLinears | None = None
    lead: _Size = LEAD
    sha256: dict[_Name, str] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.config.streaming is None or self.config.transducer is None:
            raise ValueError("config is not that of a streaming transducer")
        if missing := [name for name in GRAPHS if name not in self.graphs]:
            raise ValueError(f"graphs lacks {missing[0]}")
        plane = self.config.streaming.subsampling == "dw_striding"  # the other kind has no earlier version
        stem = [value.shape for value in self.graphs[ENCODER].inputs if value.name.startswith("stem")]
        if plane and any(shape[2] != MARGIN for shape in stem):
            raise ValueError("its encoder is of an earlier version, which waited longer for sound")
        return self

    def check_files(self, directory: Path) -> None:
        """Raise SprachbundError for a file that is not the one that was written."""
        for name, wanted in self.sha256.items():
            path = directory / name
            if not path.exists():
                raise SprachbundError(f"{directory} has no {name}; export the model again")
            try:
                seen = file_sha256(path)
            except OSError as error:
                raise SprachbundError(f"{path} cannot be read ({error.strerror}); copy it again") from error
            if seen != wanted:
                raise SprachbundError(
                    f"{path} is damaged (its checksum is {seen[:12]}, not {wanted[:12]}); copy it again, or export the "
                    "model again"
                )


def describe(model: Conformer) -> Description:
    """Return the description that the directory of a streaming transducer holds."""
    encoder, shape = model.encoder, model.transducer.shape
    assert isinstance(encoder, StreamingEncoder)
    tiers = tuple(
        TierDescribed(
            right_context=tier.right,
            chunk=tier.chunk,
            num_mel=tier.chunk * SUBSAMPLING,
            past=tier.past,
            latency_ms=round(1000 * tier.chunk * SUBSAMPLING * HOP / SAMPLE_RATE),
        )
        for tier in encoder.tiers
    )
    languages = () if model.writes_what_is_spoken else model.config.target_languages
    return Description(
        config=model.config,
        tiers=tiers,
        graphs=_graphs(model, encoder),
        blank=shape.blank,
        language_tokens={tag: model.tokenizer.language_id(tag) for tag in languages},
        packed=packed_linears(model),
    )


def write_description(description: Description, directory: Path) -> None:
    """Write config.json, with the checksums of the files that it names."""
    data_files = [p.name for p in directory.glob("*.onnx.data")]
    names = [description.tokenizer, *(graph.file for graph in description.graphs.values()), *data_files]
    digests = {name: file_sha256(directory / name) for name in sorted(names) if (directory / name).is_file()}
    description = description.model_copy(update={"sha256": digests})
    write_json(directory / "config.json", {"family": FAMILY, **description.model_dump(mode="json")})


def read_description(directory: Path) -> Description:
    """Read config.json. Raises SprachbundError for one that is broken."""
    path, advice = directory / "config.json", "export the model again"
    values = read_object(path, advice=advice)
    values.pop("family", None)
    return validate(Description, values, str(path), advice=advice)


def _graphs(model: Conformer, encoder: StreamingEncoder) -> dict[str, Graph]:
    shape = model.transducer.shape
    memory = ("batch", shape.prediction_layers, shape.prediction_width)
    return {
        ENCODER: _encoder_graph(encoder),
        PROJECTION: _graph(
            PROJECTION,
            [Value(name="states", shape=("batch", "chunk", encoder.shape.width))],
            [Value(name="frames", shape=("batch", "chunk", shape.joint_width))],
        ),
        PREDICTION: _graph(
            PREDICTION,
            [Value(name="tokens", type="int64", shape=("batch",)), *_memory(memory)],
            [Value(name="predicted", shape=("batch", shape.joint_width)), *_memory(memory, "next.")],
        ),
        JOINT: _graph(
            JOINT,
            [
                Value(name="frames", shape=("batch", "chunk", shape.joint_width)),
                Value(name="predicted", shape=("batch", shape.joint_width)),
            ],
            [Value(name="logits", shape=("batch", "chunk", shape.vocabulary_size))],
        ),
        LANGUAGE: _graph(
            LANGUAGE,
            [Value(name="mean_state", shape=("batch", encoder.shape.width))],
            [Value(name="logits", shape=("batch", len(model.config.source_languages)))],
        ),
    }


def _graph(name: str, inputs: list[Value], outputs: list[Value]) -> Graph:
    return Graph(file=f"{name}.onnx", inputs=tuple(inputs), outputs=tuple(outputs))


def _memory(shape: tuple[int | str, ...], before: str = "") -> list[Value]:
    return [Value(name=before + name, shape=shape) for name in ("hidden", "cell")]


def _encoder_graph(encoder: StreamingEncoder) -> Graph:
    shape = encoder.shape
    inputs = [
        Value(name="mel", shape=("batch", f"{SUBSAMPLING}*chunk", shape.num_mel_bins)),
        Value(name="num_mel", type="int64", shape=("batch",)),
    ]
    outputs = [
        Value(name="states", shape=("batch", "chunk", shape.width)),
        Value(name="num_frames", type="int64", shape=("batch",)),
    ]
    return _graph(ENCODER, [*inputs, *_state(encoder)], [*outputs, *_state(encoder, "next.")])


def _state(encoder: StreamingEncoder, before: str = "") -> list[Value]:
    tensors = encoder.start(1, encoder.tiers[0]).tensors()
    several = len({tier.past for tier in encoder.tiers}) > 1
    return [
        Value(
            name=before + name,
            type="float32" if tensors[name].is_floating_point() else "int64",
            shape=(
                "batch",
                *(
                    "past" if several and name in ("keys", "values") and axis == 2 else size
                    for axis, size in enumerate(tensors[name].shape[1:])
                ),
            ),
        )
        for name in STATE
    ]


_SESSIONS: "WeakSet[OnnxSession]" = WeakSet()


def _leave_sessions_behind() -> None:
    for session in _SESSIONS:
        session.leave_behind()


if sys.platform != "win32":  # it forks nothing
    os.register_at_fork(after_in_child=_leave_sessions_behind)


class OnnxSession:
    """A graph that was loaded; tensors in and out.

    Args:
        directory: directory of the model.
        graph: description of the graph.
        threads: threads to compute with; those of torch by default.

    Raises:
        SprachbundError: a file that is missing, damaged, or not the graph described.
    """

    def __init__(self, directory: Path, graph: Graph, threads: int | None = None) -> None:
        self.path = path = directory / graph.file
        self._threads = threads or torch.get_num_threads()
        if not path.exists():
            raise SprachbundError(f"{directory} has no {graph.file}; export the model again")
        self._session = self._start()
        self._process = os.getpid()
        _SESSIONS.add(self)
        self._inputs = [each.name for each in graph.inputs]
        self._outputs = [each.name for each in graph.outputs]
        there = {each.name for each in (*self._session.get_inputs(), *self._session.get_outputs())}
        described = {each.name: each.shape for each in (*graph.inputs, *graph.outputs)}
        shapes = {
            each.name: each.shape for each in (*self._session.get_inputs(), *self._session.get_outputs())
        }
        if there != {*self._inputs, *self._outputs} or not all(
            _fits(described[name], shapes[name]) for name in there
        ):
            raise SprachbundError(
                f"{path} is not the graph that config.json describes; export the model again"
            )

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Outputs for inputs, in the order of the description."""
        if self._process != os.getpid():
            self._session, self._process = self._start(), os.getpid()
        given = {name: np.ascontiguousarray(x.numpy()) for name, x in zip(self._inputs, inputs, strict=True)}
        return [torch.from_numpy(output) for output in self._session.run(self._outputs, given)]

    def _start(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        try:
            return onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own kinds have no common base
            raise SprachbundError(
                f"{self.path} cannot be run ({first_line(error)[:120]}); export the model again"
            ) from error

    def leave_behind(self) -> None:
        """Keep a session of the parent process from being closed in a forked one, which would wait for threads that are
        not there.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))

    def digest(self) -> Tensor:
        """Bytes (32,) that tell the graph from others: of the end of the file in which its weights are."""
        data_path = self.path.with_name(f"{self.path.name}.data")
        path = data_path if data_path.exists() else self.path
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 2**20))
            return torch.tensor(list(hashlib.sha256(file.read()).digest()), dtype=torch.uint8)


def _fits(described: Sequence[int | str], sizes: Sequence[object]) -> bool:
    """Whether a graph's sizes are those described, where both are numbers."""
    return len(described) == len(sizes) and all(
        isinstance(a, str) or not isinstance(b, int) or a == b for a, b in zip(described, sizes, strict=True)
    )


class OnnxEncoder(ChunkEncoder):
    """Chunks through a graph; a whole recording is a stream of its chunks."""

    def __init__(self, session: OnnxSession, shape: StreamingShape, tiers: Sequence[Tier]) -> None:
        super().__init__(shape, tiers)
        self.session = session
        self.register_buffer("digest", session.digest())  # by which saved states are told apart

    def forward(
        self,
        mel: Tensor,
        num_mel: Tensor,
        route: Route | None = None,
        means: list[Tensor] | None = None,
        *,
        tier: Tier | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `ChunkEncoder.forward`, with the same arguments. Raises ValueError for `means`, which no graph gives."""
        self._check_means(means)
        tier = tier or self.tier
        mel, num_mel = F.pad(mel, (0, 0, LEAD, 0)), num_mel + LEAD
        size, state = tier.chunk * SUBSAMPLING, self.start(len(mel), tier)
        pieces = []
        for begin in range(0, mel.shape[1], size):
            piece = mel[:, begin : begin + size]
            piece = F.pad(piece, (0, 0, 0, size - piece.shape[1]))
            states, _, state = self.stream(piece, (num_mel - begin).clamp(0, size), state, tier)
            pieces.append(states)
        num_frames, length = num_mel // SUBSAMPLING, mel.shape[1] // SUBSAMPLING
        whole = torch.cat(pieces, dim=1) if pieces else mel.new_zeros(len(mel), 0, self.shape.width)
        return whole[:, :length], num_frames

    def like(self) -> Tensor:
        """A tensor in fp32 on the CPU."""
        return torch.zeros(())

    def step(
        self,
        mel: Tensor,
        num_mel: Tensor,
        state: StreamState,
        route: Route | None = None,
        means: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, StreamState]:
        """As `ChunkEncoder.step`, with the same arguments. Raises ValueError for `means`, which no graph gives."""
        self._check_means(means)
        before = state.tensors()
        states, num_frames, *after = self.session(mel, num_mel, *(before[name] for name in STATE))
        return states, num_frames, StreamState.from_tensors(dict(zip(STATE, after, strict=True)))

    @staticmethod
    def _check_means(means: list[Tensor] | None) -> None:
        if means is not None:
            raise ValueError("a graph gives states behind its last layer alone; leave `means` out")


class OnnxPrediction(nn.Module):
    """The prediction network, what the joint network takes of it included."""

    def __init__(self, session: OnnxSession) -> None:
        super().__init__()
        self.session = session

    def step(self, tokens: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `PredictionNetwork`'s; (B, J) in the place of its output.

        Args:
            tokens: (B,), the newest ones.
            hidden: (B, L, P).
            cell: (B, L, P).
        """
        predicted, hidden, cell = self.session(tokens, hidden, cell)
        return predicted, hidden, cell


class OnnxJoint(nn.Module):
    """The joint network; `prediction` is done already, by the graph of the prediction network."""

    def __init__(self, projection: OnnxSession, joint: OnnxSession) -> None:
        super().__init__()
        self.encoder, self.session, self.prediction = OnnxLayer(projection), joint, nn.Identity()

    def forward(self, frames: Tensor, predicted: Tensor) -> Tensor:
        """Logits (B, K, V) of projected frames (B, K, J) and tokens (B, 1, J); (B, V) of (B, J) and (B, J)."""
        if predicted.ndim == 2:  # a beam asks for one frame at a time
            return self.session(frames[:, None], predicted)[0][:, 0]
        return self.session(frames, predicted[:, 0])[0]


class OnnxLayer(nn.Module):
    """A graph of one input and one output."""

    def __init__(self, session: OnnxSession) -> None:
        super().__init__()
        self.session = session

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the graph."""
        return self.session(x)[0]


class OnnxTransducer(Transducer):
    """The part behind the encoder."""

    def __init__(self, shape: TransducerShape, prediction: OnnxPrediction, joint: OnnxJoint) -> None:
        super().__init__(shape, prediction=prediction, joint=joint)

    def start(self, num_rows: int) -> TransducerState:
        """As `Transducer`'s."""
        return self.advance(
            torch.full((num_rows,), self.shape.blank), self.nothing(num_rows, torch.zeros(()))
        )


class OnnxStreamingTransducer(Conformer):
    """A model of the conformer family whose parts are graphs.

    Args:
        description: from config.json.
        tokenizer: tokenizer of what it writes.
        directory: holds the graphs.
        threads: threads to compute with; those of torch by default.

    Raises:
        SprachbundError: graphs that are missing, damaged or of another model.
    """

    name = FAMILY

    def __init__(
        self, description: Description, tokenizer: Tokenizer, directory: Path, threads: int | None = None
    ) -> None:
        with torch.device("meta"):
            super().__init__(description.config, tokenizer, tokenizer)
        encoder = self.encoder
        assert isinstance(encoder, ChunkEncoder)
        sessions = {
            name: OnnxSession(directory, graph, threads) for name, graph in description.graphs.items()
        }
        # Graphs in place of torch modules.
        self.encoder = OnnxEncoder(sessions[ENCODER], encoder.shape, encoder.tiers)  # type: ignore[assignment]
        self.transducer = OnnxTransducer(
            self.transducer.shape,
            OnnxPrediction(sessions[PREDICTION]),
            OnnxJoint(sessions[PROJECTION], sessions[JOINT]),
        )
        self.language_head: nn.Module = OnnxLayer(sessions[LANGUAGE])  # type: ignore[assignment]
        del self.decoder, self.ctc_head

    @property
    def device(self) -> torch.device:
        """Graphs are run on the CPU."""
        return torch.device(CPU)

    @property
    def capabilities(self) -> Capabilities:
        """It writes by its transducer, in whole recordings and live; there is no attention decoder."""
        return Capabilities(
            encoder=self.encoder,
            transducer=self.transducer,
            streaming=self.streaming,
            encode_text=self.encode_text,
            words_only=self.tokenizer.words_only,
        )


def load(directory: Path, threads: int | None = None) -> OnnxStreamingTransducer:
    """Load an exported model.

    Raises:
        SprachbundError: naming what is missing or does not fit.
    """
    description = read_description(directory)
    description.check_files(directory)
    path = directory / description.tokenizer
    tokenizer = Tokenizer.load(path, description.config.target_languages)
    for name, size in ((JOINT, len(tokenizer)), (LANGUAGE, len(description.config.source_languages))):
        shape = description.graphs[name].outputs[0].shape if description.graphs[name].outputs else ()
        if shape[-1:] != (size,):
            raise SprachbundError(
                f"{directory / 'config.json'}: graphs.{name} gives {list(shape)}, and tokenizer and languages ask for "
                f"{size} numbers; export the model again"
            )
    return OnnxStreamingTransducer(description, tokenizer, directory, threads).eval()


def save(model: OnnxStreamingTransducer, directory: Path, **options: Any) -> None:
    """Not there: graphs are exported, from a model of the family conformer.

    Args:
        model: model that runs from graphs.
        directory: directory to be written.
        options: options of writing.

    Raises:
        SprachbundError: always.
    """
    raise SprachbundError(
        f"a model of the kind {model.name} cannot be written; save the model that it was made from"
    )
