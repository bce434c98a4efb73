"""Parakeet and Canary in NeMo's `.nemo` files: read as what transformers' layout holds of them.

The layout is that of https://github.com/NVIDIA/NeMo: EncDecCTCModelBPE, EncDecRNNTBPEModel with or without durations,
the hybrid of both, and EncDecMultiTaskModel (Canary). A model that was read is saved as any other, and transformers
loads it then. There are two exceptions, which transformers has no place for: a Canary whose encoder and decoder differ
in width (180m-flash), and one with a tokenizer for each language (1b-flash, 180m-flash).

Shapes: D width of the decoder.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.models.conformer.checkpoints import read_sentencepiece
from sprachbund.models.fastconformer.config import (
    CanaryConfig,
    ParakeetConfig,
    library_values,
)
from sprachbund.models.fastconformer.io import fill, from_nemo
from sprachbund.models.fastconformer.model import Canary, Parakeet
from sprachbund.models.fastconformer.tokens import FastConformerTokens, add_special, from_sentencepiece
from sprachbund.models.hub import CONFIG_KEY
from sprachbund.models.nemo_archive import NemoArchive
from sprachbund.nn.text_to_text import marian_positions
from sprachbund.util.files import validate

Head = Literal["transducer", "ctc"]
"""Head of a hybrid, which has both."""

_SUPPORTED: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("preprocessor", "sample_rate"): (16_000,),
    ("preprocessor", "normalize"): ("per_feature",),
    ("preprocessor", "window_size"): (0.025,),
    ("preprocessor", "window_stride"): (0.01,),
    ("preprocessor", "window"): ("hann",),
    ("preprocessor", "n_fft"): (512,),
    ("preprocessor", "frame_splicing"): (1,),
    ("preprocessor", "log"): (True,),
    ("preprocessor", "preemph"): (0.97,),
    ("encoder", "subsampling"): ("dw_striding",),
    ("encoder", "subsampling_factor"): (8,),
    ("encoder", "causal_downsampling"): (False,),
    ("encoder", "self_attention_model"): ("rel_pos",),
    ("encoder", "att_context_style"): ("regular",),
    ("encoder", "att_context_size"): ([-1, -1],),
    ("encoder", "conv_norm_type"): ("batch_norm",),
    ("encoder", "conv_context_size"): ("regular",),
    ("encoder", "untie_biases"): (True,),
    ("encoder", "feat_out"): (-1,),
    ("encoder", "reduction"): ("none",),
}
"""Values that fields of a configuration need to have, so that our encoder computes the same."""
_DEFAULTS: dict[tuple[str, ...], Any] = {
    ("preprocessor", "frame_splicing"): 1,
    ("preprocessor", "log"): True,
    ("preprocessor", "preemph"): 0.97,
    ("encoder", "causal_downsampling"): False,
    ("encoder", "att_context_style"): "regular",
    ("encoder", "att_context_size"): [-1, -1],
    ("encoder", "conv_norm_type"): "batch_norm",
    ("encoder", "conv_context_size"): "regular",
    ("encoder", "untie_biases"): True,
    ("encoder", "feat_out"): -1,
    ("encoder", "reduction"): "none",
}
"""NeMo's values of fields that older files do not name."""
_OF_CANARY: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("prompt_format",): ("canary2",),
    ("transf_decoder", "config_dict", "pre_ln"): (True,),
    ("transf_decoder", "config_dict", "pre_ln_final_layer_norm"): (True,),
    ("transf_decoder", "config_dict", "learn_positional_encodings"): (False,),
    ("transf_decoder", "config_dict", "hidden_act"): ("relu",),
    ("transf_encoder", "num_layers"): (0,),
    ("head", "num_layers"): (1,),
}
_DEFAULTS_OF_CANARY: dict[tuple[str, ...], Any] = {
    ("prompt_format",): "canary",
    ("transf_decoder", "config_dict", "pre_ln_final_layer_norm"): True,
    ("transf_decoder", "config_dict", "learn_positional_encodings"): False,
    ("transf_encoder", "num_layers"): 0,
}
_IGNORED = re.compile(r"preprocessor\.|encoder\.pos_enc\.|spec_augment|(ctc_)?loss\.|(ctc_)?wer\.")
"""Weights of the features and of training."""
_TRANSDUCER = (
    (r"^decoder\.prediction\.embed\.", "decoder.embedding."),
    (r"^decoder\.prediction\.dec_rnn\.lstm\.", "decoder.lstm."),
    (r"^joint\.enc\.", "encoder_projector."),
    (r"^joint\.pred\.", "decoder.decoder_projector."),
    (r"^joint\.joint_net\.[12]\.", "joint.head."),
)
_CTC = ((r"^(ctc_)?decoder\.decoder_layers\.0\.", "ctc_head."),)
_POSITIONS = "decoder.pos_emb.weight"
_PROCESSORS = {"canary": "CanaryProcessor"}
_USUAL_TOKENS = 1024
"""Size of most tokenizers of NeMo's recipes, whatever the languages; it says nothing about them."""
_CLASSES = {
    "parakeet_ctc": "ParakeetForCTC",
    "parakeet_rnnt": "ParakeetForRNNT",
    "parakeet_tdt": "ParakeetForTDT",
    "canary": "CanaryForConditionalGeneration",
}


def is_streaming(archive: NemoArchive) -> bool:
    """Whether it holds a cache-aware model, which `sprachbund.models.conformer.checkpoints` reads."""
    return (
        archive.optional("encoder", "att_context_style") == "chunked_limited"
        or archive.optional("encoder", "causal_downsampling") is True
    )


def read(
    archive: NemoArchive, languages: tuple[str, ...] = (), head: Head | None = None
) -> Parakeet | Canary:
    """The model of an archive, for inference, in single precision, on the CPU.

    Args:
        archive: as opened.
        languages: BCP-47 tags that it hears; where none are given, those that have a tokenizer each, or else those of
            the published model of that size.
        head: head of a hybrid; its transducer if None. Others have one head.

    Raises:
        SprachbundError: something is missing or damaged, it is a model of another kind, or nothing says its languages.
    """
    archive.check(_SUPPORTED, _DEFAULTS)
    kind = _kind(archive, head)
    try:
        tokens = _tokens(archive, kind)
        values = (
            _canary_values(archive, tokens) if kind == "canary" else _parakeet_values(archive, kind, tokens)
        )
    except (TypeError, ValueError) as error:
        raise SprachbundError(
            f"{archive.source}: its configuration holds sizes that are none ({error}); copy it again"
        ) from error
    languages = languages or tuple(tokens.of_languages)
    if languages:
        values = library_values(values, languages)
    elif tokens.size == _USUAL_TOKENS + 1:
        raise SprachbundError(
            f"{archive.source} does not say which languages it hears, and models of many have {_USUAL_TOKENS:,} "
            "tokens; name them with --language"
        )
    weights = _weights(archive, kind)
    model: Parakeet | Canary
    if kind == "canary":
        canary = validate(CanaryConfig, values, archive.source, advice="copy it again")
        values = library_values(values, canary.languages(kind, archive.source))
        weights = _in_library_order(weights, canary, archive.source)
        with torch.device("meta"):
            model = Canary(canary, values, tokens)
    else:
        parakeet = validate(ParakeetConfig, values, archive.source, advice="copy it again")
        values = library_values(values, parakeet.languages(kind, archive.source))
        with torch.device("meta"):
            model = Parakeet(parakeet, values, tokens)
    if tokens.of_languages:
        model.values[CONFIG_KEY]["tokenizers"] = [*tokens.of_languages]
    fill(model, weights, archive.source)
    model.files = {**tokens.files(), **_other_files(model, kind)}
    return model.eval()


def _kind(archive: NemoArchive, head: Head | None) -> str:
    """`model_type` in transformers. Raises SprachbundError for an archive of something else."""
    has_ctc = archive.optional("aux_ctc") is not None or archive.optional("joint") is None
    heads: tuple[str, ...] = ()
    if archive.optional("transf_decoder") is not None:
        kind = "canary"
    elif archive.optional("joint") is not None:
        durations = archive.optional("joint", "num_extra_outputs")
        kind = "parakeet_tdt" if durations else "parakeet_rnnt"
        heads = ("transducer", "ctc") if has_ctc else ("transducer",)
    elif archive.optional("decoder", "num_classes") is not None:
        kind, heads = "parakeet_ctc", ("ctc",)
    else:
        target = archive.optional("target")
        raise SprachbundError(
            f"{archive.source} holds a {str(target)[:80]}; Parakeet with CTC or a transducer, and Canary can be read"
        )
    if head is not None and head not in heads:
        said = f"its heads are {', '.join(heads)}" if heads else "it has an attention decoder alone"
        raise SprachbundError(f"{archive.source} has no head of the kind {head}; {said}")
    return "parakeet_ctc" if head == "ctc" else kind


def _tokens(archive: NemoArchive, kind: str) -> FastConformerTokens:
    """Vocabulary of one tokenizer, or of one for each language behind those of the special tokens."""
    described = archive.value("tokenizer")
    if archive.optional("tokenizer", "type") == "agg":
        parts = {name: _tokenizer(archive, one) for name, one in archive.value("tokenizer", "langs").items()}
        (_, first), *others = parts.items()
        size = sum(tokenizer.get_vocab_size() for tokenizer in parts.values())
    else:
        first, others = _tokenizer(archive, described), []
        size = first.get_vocab_size()
    if kind == "canary":
        size = int(archive.value("head", "num_classes"))
    else:
        size += 1
        if others:
            raise SprachbundError(
                f"{archive.source} has a tokenizer for each of {', '.join(parts)}, which is built here for Canary alone"
            )
        add_special(first, "<pad>" if kind == "parakeet_ctc" else "<blank>")
    return FastConformerTokens(first, size, archive.source, of_languages=dict(others))


def _tokenizer(archive: NemoArchive, described: Any) -> Any:
    kind = described.get("type") if isinstance(described, Mapping) else None
    if kind != "bpe":
        raise SprachbundError(
            f"{archive.source}: its tokenizer is of the type {kind!r}; only 'bpe' can be read"
        )
    source = f"{archive.source}: {described.get('model_path')}"
    return from_sentencepiece(
        read_sentencepiece(archive.file(described.get("model_path")), source).model, source
    )


def _encoder_values(archive: NemoArchive) -> dict[str, Any]:
    def of(name: str) -> Any:
        return archive.value("encoder", name)

    width, channels = int(of("d_model")), int(of("subsampling_conv_channels"))
    biases = archive.optional("encoder", "use_bias") is not False
    scaled = archive.optional("encoder", "xscaling") is not False
    return {
        "model_type": "parakeet_encoder",
        "hidden_size": width,
        "num_hidden_layers": int(of("n_layers")),
        "num_attention_heads": int(of("n_heads")),
        "num_key_value_heads": int(of("n_heads")),
        "intermediate_size": int(width * of("ff_expansion_factor")),
        "hidden_act": "silu",
        "attention_bias": biases,
        "convolution_bias": biases,
        "conv_kernel_size": int(of("conv_kernel_size")),
        "subsampling_factor": 8,
        "subsampling_conv_channels": channels if channels > 0 else width,  # -1 says so
        "num_mel_bins": int(archive.value("preprocessor", "features")),
        "scale_input": scaled,
        "layerdrop": 0.0,
    }


def _parakeet_values(archive: NemoArchive, kind: str, tokens: FastConformerTokens) -> dict[str, Any]:
    """config.json of a Parakeet."""
    size = tokens.size
    values: dict[str, Any] = {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "encoder_config": _encoder_values(archive),
        "vocab_size": size,
        "pad_token_id": tokens.token("<pad>") if tokens.has("<pad>") else size - 1,
    }
    if kind == "parakeet_ctc":
        return {**values, "pad_token_id": size - 1, "ctc_loss_reduction": "mean", "ctc_zero_infinity": True}
    width = int(archive.value("decoder", "prednet", "pred_hidden"))
    joint = int(archive.value("joint", "jointnet", "joint_hidden"))
    if joint != width:
        raise SprachbundError(
            f"{archive.source}: joint_hidden is {joint} and pred_hidden {width}; only equal ones can be read"
        )
    values |= {
        "blank_token_id": size - 1,
        "decoder_hidden_size": width,
        "num_decoder_layers": int(archive.value("decoder", "prednet", "pred_rnn_layers")),
        "hidden_act": archive.value("joint", "jointnet", "activation"),
        "max_symbols_per_step": archive.optional("decoding", "greedy", "max_symbols") or 10,
        "is_encoder_decoder": True,
    }
    if kind == "parakeet_tdt":
        durations = archive.optional("decoding", "durations") or archive.optional(
            "model_defaults", "tdt_durations"
        )
        if durations is None or len(durations) != archive.value("joint", "num_extra_outputs"):
            raise SprachbundError(
                f"{archive.source}: decoding.durations is {durations!r} and joint.num_extra_outputs "
                f"{archive.value('joint', 'num_extra_outputs')}; copy it again"
            )
        values["durations"] = [*durations]
    return values


def _canary_values(archive: NemoArchive, tokens: FastConformerTokens) -> dict[str, Any]:
    """config.json of a Canary."""
    archive.check(_OF_CANARY, _DEFAULTS_OF_CANARY)

    def of(name: str) -> Any:
        return archive.value("transf_decoder", "config_dict", name)

    width, heads = int(of("hidden_size")), int(of("num_attention_heads"))
    ends = {
        "bos_token_id": tokens.token("<|startoftranscript|>"),
        "eos_token_id": tokens.token("<|endoftext|>"),
        "pad_token_id": tokens.token("<pad>"),
    }
    return {
        "architectures": [_CLASSES["canary"]],
        "model_type": "canary",
        "encoder_config": _encoder_values(archive),
        "decoder_config": {
            "model_type": "canary_decoder",
            "vocab_size": tokens.size,
            "hidden_size": width,
            "intermediate_size": int(of("inner_size")),
            "num_hidden_layers": int(of("num_layers")),
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": width // heads,
            "hidden_act": "relu",
            "max_position_embeddings": int(of("max_sequence_length")),
            "attention_bias": True,
            **ends,
        },
        "vocab_size": tokens.size,
        "decoder_start_token_id": tokens.token("<|startofcontext|>"),
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        **ends,
    }


def _weights(archive: NemoArchive, kind: str) -> dict[str, Tensor]:
    """Weights under transformers' names; of a hybrid, those of the head that is wanted."""
    rules = {"canary": (), "parakeet_ctc": _CTC}.get(kind, _TRANSDUCER)
    weights: dict[str, Tensor] = {}
    for name, value in archive.tensors().items():
        if _IGNORED.match(name):
            continue
        if kind == "parakeet_ctc" and re.match(r"decoder\.prediction\.|joint\.", name):
            continue
        if kind in ("parakeet_rnnt", "parakeet_tdt") and name.startswith("ctc_decoder."):
            continue
        theirs = from_nemo(name)
        for pattern, replacement in rules:
            theirs = re.sub(pattern, replacement, theirs)
        weights[theirs] = value
    return weights


def _in_library_order(weights: Mapping[str, Tensor], config: CanaryConfig, source: str) -> dict[str, Tensor]:
    """Weights of a Canary whose decoder adds positions in transformers' order.

    NeMo lets sines and cosines of a position alternate; transformers has all sines first. What goes from layer to layer
    is therefore reordered in every weight that reads or writes it, by which nothing else changes. The archive holds
    the positions, so it says itself whether its weights are in the one order or the other.
    """
    weights = dict(weights)
    positions = weights.pop(_POSITIONS, None)
    width = config.decoder_config.hidden_size
    if positions is None or positions.ndim != 2 or positions.shape[1] != width:
        raise SprachbundError(f"{source} has no position vectors of width {width}; copy it again")
    wanted = marian_positions(len(positions), width) / width**0.5
    alternating = torch.cat([torch.arange(0, width, 2), torch.arange(1, width, 2)])
    for order in (alternating, torch.arange(width)):
        if torch.allclose(positions.float()[:, order], wanted, atol=1e-3 / width**0.5):
            break
    else:
        raise SprachbundError(f"{source} has positions that are no sinusoids; only those can be read")
    reads = re.compile(
        r"decoder\.(layers\.\d+\.(self_attn\.[qkv]_proj|encoder_attn\.q_proj|mlp\.fc1)|embed_tokens)\.weight"
    )
    writes = re.compile(r"decoder\.layers\.\d+\.((self|encoder)_attn\.o_proj|mlp\.fc2)\.(weight|bias)")
    norms = re.compile(
        r"decoder\.(layers\.\d+\.(input|post_attention|final)_layernorm|embedding_layernorm|norm)\.(weight|bias)"
    )
    for name, value in weights.items():
        if reads.fullmatch(name) or name == "proj_out.weight":
            weights[name] = value[:, order]
        elif writes.fullmatch(name) or norms.fullmatch(name):
            weights[name] = value[order]
    return weights


def _other_files(model: Parakeet | Canary, kind: str) -> dict[str, bytes]:
    """Further files that transformers reads: tokens of the tokenizer, features, and how text begins."""
    extractor = {
        "feature_extractor_type": "ParakeetFeatureExtractor",
        "feature_size": model.num_mel_bins,
        "sampling_rate": 16_000,
        "hop_length": 160,
        "n_fft": 512,
        "win_length": 400,
        "preemphasis": 0.97,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }
    processor: dict[str, Any] = {
        "feature_extractor": extractor,
        "processor_class": _PROCESSORS.get(kind, "ParakeetProcessor"),
    }
    values = model.values
    names = {"unk_token": "<unk>", "pad_token": "<pad>" if model.tokens.has("<pad>") else "<blank>"}
    starts = {"pad_token_id": values["pad_token_id"]}
    if kind == "canary":
        names |= {"bos_token": "<|startoftranscript|>", "eos_token": "<|endoftext|>"}
        starts |= {name: values[name] for name in ("bos_token_id", "eos_token_id", "decoder_start_token_id")}
    else:
        processor |= {"blank_token": "<blank>", "decoder_type": kind.removeprefix("parakeet_")}
        if kind != "parakeet_ctc":
            starts["decoder_start_token_id"] = values["blank_token_id"]
    tokenizer_class = "TokenizersBackend" if kind == "canary" else "ParakeetTokenizer"
    return {
        "processor_config.json": _json(processor),
        "tokenizer_config.json": _json(
            {
                "backend": "tokenizers",
                "tokenizer_class": tokenizer_class,
                "processor_class": processor["processor_class"],
                **names,
            }
        ),
        "generation_config.json": _json(starts),
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
