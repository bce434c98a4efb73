"""Made checkpoints of public layouts: a random model of transformers, also under NeMo's names in NeMo's archive."""

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import yaml
from tokenizers import Tokenizer as Tokens
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    Nemotron3_5AsrConfig,
    Nemotron3_5AsrForRNNT,
    NemotronAsrStreamingConfig,
    NemotronAsrStreamingForRNNT,
)

TEXTS = ["one two three four", "five six seven", "eight nine ten eleven", "two by two by ten"] * 3
NUM_PIECES = 40
RIGHT = (13, 6, 1, 0)
PROMPTS = {"en-US": 0, "en": 0, "de-DE": 3, "de": 3, "th-TH": 5, "auto": 7}

_TO_NEMO = (
    (r"^encoder_projector", "joint.enc"),
    (r"^decoder\.embedding", "decoder.prediction.embed"),
    (r"^decoder\.lstm", "decoder.prediction.dec_rnn.lstm"),
    (r"^decoder\.decoder_projector", "joint.pred"),
    (r"^joint\.head", "joint.joint_net.2"),
    (r"subsampling\.conv_in", "pre_encode.conv.0"),
    (r"subsampling\.layers\.0\.depthwise_conv", "pre_encode.conv.2"),
    (r"subsampling\.layers\.0\.pointwise_conv", "pre_encode.conv.3"),
    (r"subsampling\.layers\.1\.depthwise_conv", "pre_encode.conv.5"),
    (r"subsampling\.layers\.1\.pointwise_conv", "pre_encode.conv.6"),
    (r"subsampling\.linear", "pre_encode.out"),
    (r"self_attn\.([qkv])_proj", r"self_attn.linear_\1"),
    (r"self_attn\.o_proj", "self_attn.linear_out"),
    (r"self_attn\.relative_k_proj", "self_attn.linear_pos"),
    (r"self_attn\.bias_", "self_attn.pos_bias_"),
    (r"conv\.norm", "conv.batch_norm"),
    (r"prompt_projector\.linear_1", "prompt_kernel.0"),
    (r"prompt_projector\.linear_2", "prompt_kernel.2"),
)


def made_model(
    *, biases: bool = True, num_layers: int = 2, seed: int = 0, prompted: bool = False
) -> NemotronAsrStreamingForRNNT:
    """Random weights that write a token at about every third frame; with prompts, a `nemotron3_5_asr`."""
    torch.manual_seed(seed)
    encoder = {
        "hidden_size": 32,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "num_mel_bins": 40,
        "subsampling_conv_channels": 8,
        "attention_bias": biases,
        "convolution_bias": biases,
    }
    sizes: dict[str, Any] = {
        "vocab_size": NUM_PIECES + 1,
        "blank_token_id": NUM_PIECES,
        "decoder_hidden_size": 24,
        "num_decoder_layers": 2,
        "encoder_config": encoder,
    }
    model: NemotronAsrStreamingForRNNT
    if prompted:
        prompts = {"num_prompts": 8, "prompt_intermediate_size": 48, "default_prompt_id": 7}
        model = Nemotron3_5AsrForRNNT(Nemotron3_5AsrConfig(**sizes, **prompts)).eval()
    else:
        model = NemotronAsrStreamingForRNNT(NemotronAsrStreamingConfig(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.normal_(std=(parameter.numel() / len(parameter)) ** -0.5)
        model.decoder.embedding.weight[-1] = 0.0
        if prompted:
            model.prompt_projector.linear_1.weight[:, 32:].mul_(1.5)
            model.prompt_projector.linear_2.weight.mul_(3.0)
        model.encoder_projector.weight.mul_(3.0)
        model.decoder.decoder_projector.weight.mul_(2.0)
        model.joint.head.bias[-1] += 7.0
    return model


def sentencepiece_model() -> bytes:
    """As NeMo's tokenizers are trained: byte pairs, unknown first, no other special tokens."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=made,
        vocab_size=NUM_PIECES,
        model_type="bpe",
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    return made.getvalue()


def nemo_config(model: NemotronAsrStreamingForRNNT) -> dict[str, Any]:
    encoder = model.config.encoder_config
    return {
        "target": "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel",
        "model_defaults": {"prompt_dictionary": PROMPTS, "num_prompts": 8},
        "preprocessor": {
            "sample_rate": 16000,
            "normalize": "NA",
            "window_size": 0.025,
            "window_stride": 0.01,
            "window": "hann",
            "features": encoder.num_mel_bins,
            "n_fft": 512,
            "dither": 1e-05,
        },
        "encoder": {
            "feat_in": encoder.num_mel_bins,
            "n_layers": encoder.num_hidden_layers,
            "d_model": encoder.hidden_size,
            "subsampling": "dw_striding",
            "subsampling_factor": 8,
            "subsampling_conv_channels": encoder.subsampling_conv_channels,
            "causal_downsampling": True,
            "ff_expansion_factor": encoder.intermediate_size // encoder.hidden_size,
            "self_attention_model": "rel_pos",
            "n_heads": encoder.num_attention_heads,
            "att_context_size": [[70, right] for right in RIGHT],
            "att_context_style": "chunked_limited",
            "xscaling": encoder.scale_input,
            "untie_biases": True,
            "conv_kernel_size": encoder.conv_kernel_size,
            "conv_norm_type": "layer_norm",
            "conv_context_size": "causal",
        },
        "decoder": {"blank_as_pad": True, "prednet": {"pred_hidden": 24, "pred_rnn_layers": 2}},
        "joint": {"jointnet": {"joint_hidden": 24, "activation": "relu", "dropout": 0.2}},
        "tokenizer": {"type": "bpe", "model_path": "nemo:0a1b_tokenizer.model"},
    }


def nemo_weights(model: NemotronAsrStreamingForRNNT) -> dict[str, Tensor]:
    result = {"preprocessor.featurizer.window": torch.hann_window(400, periodic=False)}
    for name, value in model.state_dict().items():
        for pattern, replacement in _TO_NEMO:
            name = re.sub(pattern, replacement, name)
        result[name] = value.clone()
    return result


def write_nemo(path: Path, config: Any, weights: Any, tokenizer: bytes | None) -> Path:
    """The archive; a part that is None is left out, bytes are written as they are."""
    data = io.BytesIO()
    torch.save(weights, data)
    files = {
        "./model_config.yaml": config if isinstance(config, bytes) else yaml.safe_dump(config).encode(),
        "./model_weights.ckpt": weights if isinstance(weights, bytes) else data.getvalue(),
        "./0a1b_tokenizer.model": tokenizer,
    }
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            if content is not None:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def write_transformers(directory: Path, model: NemotronAsrStreamingForRNNT) -> Path:
    """As `save_pretrained` and the processor write it, with the same tokens as `sentencepiece_model`."""
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    vocabulary = {pieces.id_to_piece(n): n for n in range(len(pieces))}
    joined = [
        (piece[:cut], piece[cut:])
        for piece in sorted(vocabulary, key=lambda p: -pieces.get_score(vocabulary[p]))
        for cut in range(1, len(piece))
        if piece != "<unk>" and piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    tokens = Tokens(models.BPE(vocab=vocabulary, merges=joined, unk_token="<unk>"))
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokens.add_special_tokens(["<blank>"])
    tokens.save(str(directory / "tokenizer.json"))
    described: dict[str, Any] = {"supported_num_lookahead_tokens": list(RIGHT)}
    if model.config.model_type == "nemotron3_5_asr":
        described["prompt_dictionary"] = PROMPTS
    (directory / "processor_config.json").write_text(json.dumps(described))
    return directory
