"""Archives of NeMo's layout, written from random models of transformers: names, configuration and tokenizers."""

import io
import re
import tarfile
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import yaml
from torch import Tensor

from sprachbund.nn.text_to_text import marian_positions
from tests.models.fastconformer.support import SENTENCES, SPECIAL, Checkpoint

_TO_NEMO = (
    (r"^model\.", ""),
    (r"^encoder_projector", "joint.enc"),
    (r"^decoder\.embedding\.", "decoder.prediction.embed."),
    (r"^decoder\.lstm", "decoder.prediction.dec_rnn.lstm"),
    (r"^decoder\.decoder_projector", "joint.pred"),
    (r"^joint\.head", "joint.joint_net.2"),
    (r"^ctc_head", "decoder.decoder_layers.0"),
    (r"subsampling\.layers\.", "pre_encode.conv."),
    (r"subsampling\.linear", "pre_encode.out"),
    (r"^(encoder.*)self_attn\.([qkv])_proj", r"\1self_attn.linear_\2"),
    (r"^(encoder.*)self_attn\.o_proj", r"\1self_attn.linear_out"),
    (r"self_attn\.relative_k_proj", "self_attn.linear_pos"),
    (r"self_attn\.bias_", "self_attn.pos_bias_"),
    (r"conv\.norm\.", "conv.batch_norm."),
    (r"^decoder\.embed_tokens", "transf_decoder._embedding.token_embedding"),
    (r"^decoder\.embedding_layernorm", "transf_decoder._embedding.layer_norm"),
    (r"^decoder\.norm", "transf_decoder._decoder.final_layer_norm"),
    (r"^decoder\.layers", "transf_decoder._decoder.layers"),
    (r"\.input_layernorm\.", ".layer_norm_1."),
    (r"\.post_attention_layernorm\.", ".layer_norm_2."),
    (r"\.final_layernorm\.", ".layer_norm_3."),
    (r"(transf_decoder.*)\.self_attn\.", r"\1.first_sub_layer."),
    (r"\.encoder_attn\.", ".second_sub_layer."),
    (r"\.mlp\.fc1\.", ".third_sub_layer.dense_in."),
    (r"\.mlp\.fc2\.", ".third_sub_layer.dense_out."),
    (r"_sub_layer\.q_proj", "_sub_layer.query_net"),
    (r"_sub_layer\.k_proj", "_sub_layer.key_net"),
    (r"_sub_layer\.v_proj", "_sub_layer.value_net"),
    (r"_sub_layer\.o_proj", "_sub_layer.out_projection"),
    (r"^proj_out", "log_softmax.mlp.layer0"),
)


def sentencepiece_model(
    special: bool, *, kind: str = "bpe", size: int | None = None, sentences: list[str] | None = None
) -> bytes:
    """As NeMo trains them: unknown first, special tokens as symbols of the user, as many pieces as can be."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((SENTENCES if sentences is None else sentences) * 3),
        model_writer=made,
        vocab_size=64 if size is None else size,
        hard_vocab_limit=kind == "bpe",
        model_type=kind,
        bos_id=-1,
        eos_id=-1,
        user_defined_symbols=[*SPECIAL[1:]] if special else [],
        minloglevel=2,
    )
    return made.getvalue()


def nemo_config(made: Checkpoint, **changes: Any) -> dict[str, Any]:
    """`model_config.yaml` of a checkpoint, with NeMo's sections and fields."""
    config, encoder = made.hf_model.config, made.hf_model.config.encoder_config
    values: dict[str, Any] = {
        "sample_rate": 16000,
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "sample_rate": 16000,
            "normalize": "per_feature",
            "window_size": 0.025,
            "window_stride": 0.01,
            "window": "hann",
            "features": encoder.num_mel_bins,
            "n_fft": 512,
            "frame_splicing": 1,
            "dither": 1e-05,
            "pad_to": 0,
        },
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConformerEncoder",
            "feat_in": encoder.num_mel_bins,
            "feat_out": -1,
            "n_layers": encoder.num_hidden_layers,
            "d_model": encoder.hidden_size,
            "use_bias": encoder.attention_bias,
            "subsampling": "dw_striding",
            "subsampling_factor": 8,
            "subsampling_conv_channels": encoder.subsampling_conv_channels,
            "causal_downsampling": False,
            "ff_expansion_factor": encoder.intermediate_size / encoder.hidden_size,
            "self_attention_model": "rel_pos",
            "n_heads": encoder.num_attention_heads,
            "att_context_size": [-1, -1],
            "att_context_style": "regular",
            "xscaling": encoder.scale_input,
            "untie_biases": True,
            "pos_emb_max_len": 5000,
            "conv_kernel_size": encoder.conv_kernel_size,
            "conv_norm_type": "batch_norm",
            "conv_context_size": None,
        },
        "tokenizer": {"dir": "/data", "type": "bpe", "model_path": "nemo:0a1b_tokenizer.model"},
    }
    if made.kind == "parakeet_ctc":
        values["decoder"] = {"feat_in": None, "num_classes": config.vocab_size - 1}
        values["target"] = "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE"
    elif made.kind == "canary":
        decoder = config.decoder_config
        values |= {
            "prompt_format": "canary2",
            "model_defaults": {"asr_enc_hidden": encoder.hidden_size, "lm_dec_hidden": decoder.hidden_size},
            "transf_encoder": {"num_layers": 0},
            "transf_decoder": {
                "config_dict": {
                    "max_sequence_length": decoder.max_position_embeddings,
                    "num_token_types": 0,
                    "embedding_dropout": 0.1,
                    "learn_positional_encodings": False,
                    "hidden_size": decoder.hidden_size,
                    "inner_size": decoder.intermediate_size,
                    "num_layers": decoder.num_hidden_layers,
                    "num_attention_heads": decoder.num_attention_heads,
                    "hidden_act": "relu",
                    "pre_ln": True,
                    "vocab_size": "None",
                }
            },
            "head": {"num_layers": 1, "activation": "relu", "num_classes": config.vocab_size},
            "target": "nemo.collections.asr.models.aed_multitask_models.EncDecMultiTaskModel",
        }
    else:
        values |= {
            "decoder": {
                "blank_as_pad": True,
                "prednet": {
                    "pred_hidden": config.decoder_hidden_size,
                    "pred_rnn_layers": config.num_decoder_layers,
                },
            },
            "joint": {
                "jointnet": {
                    "joint_hidden": config.decoder_hidden_size,
                    "activation": "relu",
                    "dropout": 0.2,
                },
                "num_classes": config.vocab_size - 1,
            },
            "decoding": {"strategy": "greedy_batch", "greedy": {"max_symbols": 10}},
            "target": "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel",
        }
        if made.kind == "parakeet_tdt":
            values["joint"]["num_extra_outputs"] = len(config.durations)
            values["decoding"]["durations"] = [*config.durations]
    return {**values, **changes}


def nemo_weights(made: Checkpoint) -> dict[str, Tensor]:
    """The weights under NeMo's names; of a Canary, as a decoder has them whose sines and cosines alternate."""
    result = {"preprocessor.featurizer.window": torch.hann_window(400, periodic=False)}
    weights = made.hf_model.state_dict()
    if made.kind == "canary":
        decoder = made.hf_model.config.decoder_config
        weights = alternating(weights, decoder.hidden_size)
        positions = marian_positions(decoder.max_position_embeddings, decoder.hidden_size)
        result["transf_decoder._embedding.position_embedding.pos_enc"] = (
            positions[:, restored(decoder.hidden_size)] / decoder.hidden_size**0.5
        )
    for name, value in weights.items():
        for pattern, replacement in _TO_NEMO:
            name = re.sub(pattern, replacement, name)
        result[name] = value.clone()
    return result


def restored(width: int) -> Tensor:
    """Indices that let sines and cosines alternate which stand one after the other."""
    return torch.arange(width).unflatten(0, (2, -1)).T.flatten()


def alternating(weights: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """The decoder of a Canary, with what goes from layer to layer in another order: dimension by dimension by hand."""
    order, changed = restored(width), dict(weights)
    for name, value in weights.items():
        if not name.startswith(("model.decoder.", "proj_out.weight")):
            continue
        by_rows = name.endswith(
            ("norm.weight", "norm.bias", "o_proj.weight", "o_proj.bias", "fc2.weight", "fc2.bias")
        )
        by_columns = name.endswith(("embed_tokens.weight", "proj_out.weight", "fc1.weight", "q_proj.weight"))
        by_columns = by_columns or name.endswith(("self_attn.k_proj.weight", "self_attn.v_proj.weight"))
        if by_rows:
            changed[name] = value[order]
        elif by_columns:
            changed[name] = value[:, order]
    return changed


def write_archive(path: Path, config: Any, weights: Any, files: dict[str, bytes], *, mode: str = "w") -> Path:
    """The archive, with tokenizers and other files beside the configuration and the weights."""
    data = io.BytesIO()
    torch.save(weights, data)
    members = {
        "./model_config.yaml": yaml.safe_dump(config, sort_keys=False).encode(),
        **{f"./{name}": content for name, content in files.items()},
        "./model_weights.ckpt": data.getvalue(),
    }
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
