"""What config.json of an exported model says: sizes and languages, tiers, and the graphs with all that goes in and out.

Whoever runs the graphs without this package needs no more than this file, the graphs and the tokenizer.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sprachbund.audio.constants import HOP, SAMPLE_RATE
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import Conformer
from sprachbund.models.conformer.shape import ConformerConfig
from sprachbund.models.packed_linears import PackedLinears, packed_linears
from sprachbund.nn.limits import VOCABULARY, Frames
from sprachbund.nn.streaming_encoder import SUBSAMPLING, StreamingEncoder
from sprachbund.util.files import file_sha256, read_object, validate, write_json

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
"""Of a file in the model's directory."""
_Token = Annotated[int, Field(strict=True, ge=0, lt=VOCABULARY.most)]
_Size = Annotated[int, Field(strict=True, ge=0, le=2**31)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Value(_Strict):
    """An input or output.

    Attributes:
        name: in the graph.
        type: of its numbers.
        shape: numbers, and names of sizes that may differ: "batch", "chunk" (frames), "8*chunk" (mel frames).
    """

    name: str
    type: Literal["float32", "int64"] = "float32"
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
    """Of an exported model.

    Attributes:
        config: sizes and languages of the model it was made from.
        tiers: the first is the one for whole recordings.
        graphs: by name.
        blank: token that takes a step in time; it also begins every text.
        language_tokens: token that the prediction network reads before it begins, by the language wanted; none where
            the model writes what is spoken.
        tokenizer: file of its SentencePiece model.
        packed: how linear layers of the encoder are packed, where they are.
        sha256: of the files beside this one, by name; older directories have none.
    """

    config: ConformerConfig
    tiers: tuple[TierDescribed, ...]
    graphs: dict[str, Graph]
    blank: _Token
    language_tokens: dict[str, _Token]
    tokenizer: _Name = "tokenizer.model"
    packed: PackedLinears | None = None
    sha256: dict[_Name, str] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.config.streaming is None or self.config.transducer is None:
            raise ValueError("config is not that of a streaming transducer")
        if missing := [name for name in GRAPHS if name not in self.graphs]:
            raise ValueError(f"graphs lacks {missing[0]}")
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
    """What the directory of a streaming transducer is to say."""
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
    beside = [p.name for p in directory.glob("*.onnx.data")]
    names = [description.tokenizer, *(graph.file for graph in description.graphs.values()), *beside]
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
