"""Saves the state of a stream as bytes and loads it again, for the same model only.

The format is safetensors. Its metadata identify the model: sizes, tier or delay, how the encoder is packed, and a
digest of the weights, because the state of a model with other weights has the same shapes. All of these are of the
model as it is stored, so that a stream may go on with another engine.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from sprachbund.errors import SprachbundError
from sprachbund.models.base import FrameDecoder, FrameState
from sprachbund.models.weights import streaming_origin, weights_digest
from sprachbund.nn.streaming_conformer import ChunkEncoder, StreamState, Tier
from sprachbund.nn.transducer import TransducerState

_ENCODER, _TRANSDUCER = "encoder.", "transducer."
_WHAT = {
    "width": "has width",
    "layers": "has layers",
    "left_context": "keeps frames of the past",
    "lead": "hears frames of silence first",
    "delay": "writes with a delay in frames of",
    "numbers": "computes in",
    "weights": "has weights of the digest",
}


def save_stream(model: Any, tier: Tier, encoder: StreamState, transducer: TransducerState) -> bytes:
    """Both states of streams of a model, as bytes.

    Args:
        model: a conformer with a streaming encoder and a transducer.
        tier: tier under which the streams run.
        encoder: B rows.
        transducer: rows of the same streams, one for each text.
    """
    tensors = {
        **{_ENCODER + name: tensor for name, tensor in encoder.tensors().items()},
        **{_TRANSDUCER + name: tensor for name, tensor in transducer.tensors().items()},
    }
    return _to_bytes(tensors, _identity(model, tier))


def load_stream(model: Any, tier: Tier, data: bytes) -> tuple[StreamState, TransducerState]:
    """The inverse of `save_stream`.

    Args:
        model: as for `save_stream`.
        tier: tier under which the streams go on.
        data: the bytes.

    Raises:
        SprachbundError: damaged, or of another model or tier; the message says what differs.
    """
    tensors = _from_bytes(data, _identity(model, tier))
    encoder = StreamState.from_tensors(_under(_ENCODER, tensors))
    transducer = TransducerState.from_tensors(_under(_TRANSDUCER, tensors))
    model.transducer.check_state(transducer, len(transducer.num_frames))
    return encoder, transducer


def save_frames(decoder: FrameDecoder, state: FrameState) -> bytes:
    """The state of streams of a model that writes one token for every frame, as bytes.

    Args:
        decoder: the model.
        state: state of any number of rows.
    """
    return _to_bytes(state.tensors(), _identity_of_frames(decoder))


def load_frames(decoder: FrameDecoder, data: bytes) -> FrameState:
    """The inverse of `save_frames`, on the device of the model.

    Args:
        decoder: the model.
        data: the bytes.

    Raises:
        SprachbundError: damaged, or of another model; the message says what differs.
    """
    start = decoder.start_frames(1)
    device = next(iter(start.tensors().values())).device
    tensors = _from_bytes(data, _identity_of_frames(decoder))
    return type(start).from_tensors({name: tensor.to(device) for name, tensor in tensors.items()})


def _to_bytes(tensors: Mapping[str, Tensor], identity: Mapping[str, Any]) -> bytes:
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return save(plain, {name: json.dumps(value) for name, value in identity.items()})


def _from_bytes(data: bytes, identity: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        tensors, head = load(data), _head(data)
        saved = {name: json.loads(head[name]) for name in identity}
    except (SafetensorError, ValueError, KeyError, struct.error) as error:
        raise SprachbundError(
            "this is not the whole state of a stream; save it again, or begin the stream anew"
        ) from error
    for name, here in identity.items():
        if saved[name] != here:
            raise SprachbundError(
                f"the state is of another model, or another setting of it: that one {_WHAT[name]} {saved[name]}, this "
                f"one {_WHAT[name]} {here}; go on with the one that it was saved from"
            )
    return tensors


def _identity(model: Any, tier: Tier) -> dict[str, Any]:
    """The values that have to be the same for a state to mean the same."""
    encoder: ChunkEncoder = model.encoder
    return {
        "width": encoder.shape.width,
        "layers": encoder.shape.num_layers,
        "left_context": tier.past,
        **(encoder.origin or streaming_origin(encoder, model.transducer)),
    }


def _identity_of_frames(decoder: FrameDecoder) -> dict[str, Any]:
    if not isinstance(decoder, nn.Module):
        raise TypeError(f"{type(decoder).__name__} has no weights to identify it by")
    return {"lead": decoder.lead, "delay": decoder.delay, "weights": weights_digest((decoder,))}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _head(data: bytes) -> Mapping[str, str]:
    """Metadata of a safetensors file in memory: eight bytes of length, then JSON."""
    (length,) = struct.unpack("<Q", data[:8])
    metadata: Mapping[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata
