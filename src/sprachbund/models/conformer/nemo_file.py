"""NeMo's files of cache-aware FastConformer transducers: a tar of a configuration, weights and a tokenizer.

The layout is that of https://github.com/NVIDIA/NeMo (EncDecRNNTBPEModel, ConformerEncoder with dw_striding and causal
convolutions, RNNTDecoder, RNNTJoint; hybrids with a CTC head too). Weights are read as plain tensors; whatever else a
file asks to be run is refused.
"""

import io
import pickle
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.conformer.foreign import ForeignCheckpoint, ForeignShape
from sprachbund.models.conformer.foreign_names import NEMO, renamed
from sprachbund.models.conformer.foreign_pieces import ForeignPieces, read_sentencepiece

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"

_IGNORED = re.compile(r"preprocessor\.|encoder\.pos_enc\.|spec_augment|loss\.|(ctc_)?wer\.")

_SUPPORTED: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("preprocessor", "sample_rate"): (16_000,),
    ("preprocessor", "normalize"): ("NA", None, "None"),
    ("preprocessor", "window_size"): (0.025,),
    ("preprocessor", "window_stride"): (0.01,),
    ("preprocessor", "window"): ("hann",),
    ("preprocessor", "n_fft"): (512,),
    ("encoder", "subsampling"): ("dw_striding",),
    ("encoder", "subsampling_factor"): (8,),
    ("encoder", "causal_downsampling"): (True,),
    ("encoder", "self_attention_model"): ("rel_pos",),
    ("encoder", "att_context_style"): ("chunked_limited",),
    ("encoder", "conv_context_size"): ("causal",),
    ("encoder", "conv_norm_type"): ("layer_norm",),
    ("encoder", "untie_biases"): (True,),
    ("tokenizer", "type"): ("bpe",),
}
"""What of a configuration has to have one of these values, for our encoder to compute the same."""


def read_nemo(path: Path) -> ForeignCheckpoint:
    """Read a `.nemo` file.

    Raises:
        SprachbundError: no such archive, something missing or damaged, or a model of another kind.
    """
    place = str(path)
    members = _members(path)
    config = _configuration(members, place)
    _check_supported(config, place)
    try:
        shape = _shape(config, place)
    except (TypeError, ValueError, IndexError) as error:
        raise SprachbundError(
            f"{place}: {CONFIG} holds sizes that are none ({error}); copy it again"
        ) from error
    weights, others = renamed(_tensors(members[WEIGHTS], place), NEMO)
    if unknown := [name for name in others if not _IGNORED.match(name)]:
        raise SprachbundError(
            f"{place} holds weights of a kind not known here ({', '.join(sorted(unknown)[:3])}); "
            "only cache-aware FastConformer transducers can be read"
        )
    return ForeignCheckpoint(
        place=place,
        shape=shape,
        weights=weights,
        pieces=_pieces(config, members, place),
    )


def _members(path: Path) -> dict[str, bytes]:
    """Files of the archive, by name without folders."""
    try:
        with tarfile.open(path, "r:*") as archive:
            files = [(member, archive.extractfile(member)) for member in archive if member.isfile()]
            found = {Path(member.name).name: file.read() for member, file in files if file is not None}
    except FileNotFoundError:
        raise SprachbundError(f"there is no file {path}; check the path") from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise SprachbundError(f"{path} is not a whole .nemo archive; copy it again") from error
    for name in (CONFIG, WEIGHTS):
        if name not in found:
            raise SprachbundError(f"{path} has no {name}, so it is no .nemo file of a model; copy it again")
    return found


def _configuration(members: Mapping[str, bytes], place: str) -> Mapping[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(members[CONFIG])
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SprachbundError(f"{place}: {CONFIG} is not YAML; copy it again") from error
    if not isinstance(config, Mapping):
        raise SprachbundError(f"{place}: {CONFIG} holds no configuration; copy it again")
    return config


def _tensors(data: bytes, place: str) -> dict[str, Tensor]:
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SprachbundError(
            f"{place}: {WEIGHTS} is not plain weights ({reason[:80]}); copy it again"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise SprachbundError(f"{place}: {WEIGHTS} holds something else than weights; copy it again")
    return found


def _value(config: Mapping[str, Any], keys: Sequence[str], place: str) -> Any:
    found: Any = config
    for key in keys:
        if not isinstance(found, Mapping) or key not in found:
            raise SprachbundError(f"{place}: {CONFIG} lacks {'.'.join(keys)}; it is of another kind of model")
        found = found[key]
    return found


def _check_supported(config: Mapping[str, Any], place: str) -> None:
    if extra := (config.get("joint") or {}).get("num_extra_outputs"):
        raise SprachbundError(
            f"{place} writes durations too ({extra}); only transducers without them can be read"
        )
    for keys, values in _SUPPORTED.items():
        value = _value(config, keys, place)
        if value not in values:
            raise SprachbundError(f"{place}: {'.'.join(keys)} is {value!r}; only {values[0]!r} can be read")


def _shape(config: Mapping[str, Any], place: str) -> ForeignShape:
    def of(*keys: str) -> Any:
        return _value(config, keys, place)

    contexts = of("encoder", "att_context_size")
    contexts = contexts if isinstance(contexts[0], Sequence) else [contexts]
    if len({left for left, _ in contexts}) > 1:
        raise SprachbundError(f"{place}: att_context_size is {contexts}; all have to look equally far back")
    width, activation = int(of("encoder", "d_model")), of("joint", "jointnet", "activation")
    if activation not in ("relu", "tanh"):
        raise SprachbundError(
            f"{place}: joint.jointnet.activation is {activation!r}; relu or tanh can be read"
        )
    channels = int(of("encoder", "subsampling_conv_channels"))
    return ForeignShape(
        num_mel_bins=int(of("preprocessor", "features")),
        width=width,
        num_heads=int(of("encoder", "n_heads")),
        num_layers=int(of("encoder", "n_layers")),
        feed_forward_width=width * int(of("encoder", "ff_expansion_factor")),
        kernel_size=int(of("encoder", "conv_kernel_size")),
        stem_channels=channels if channels > 0 else width,  # -1 says so
        scale_input=bool(of("encoder", "xscaling")),
        left_context=int(contexts[0][0]),
        right_contexts=tuple(int(right) for _, right in contexts),
        prediction_width=int(of("decoder", "prednet", "pred_hidden")),
        prediction_layers=int(of("decoder", "prednet", "pred_rnn_layers")),
        joint_width=int(of("joint", "jointnet", "joint_hidden")),
        activation=activation,
    )


def _pieces(config: Mapping[str, Any], members: Mapping[str, bytes], place: str) -> ForeignPieces:
    named = str(_value(config, ("tokenizer", "model_path"), place)).removeprefix("nemo:")
    data = members.get(Path(named).name)
    if data is None:
        raise SprachbundError(f"{place} has no {Path(named).name}, its tokenizer; copy it again")
    return read_sentencepiece(data, f"{place}: {Path(named).name}")
