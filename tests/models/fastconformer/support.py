"""Random Parakeet and Canary checkpoints in the true layout, made and written by transformers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import ParakeetFeatureExtractor, ParakeetProcessor, ParakeetTokenizer, TokenizersBackend

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.models.fastconformer import Canary, Parakeet, load

LANGUAGES = ["en", "de", "fr"]
SENTENCES = [
    "the cat runs home",
    "der Hund läuft nach Hause",
    "le chat court à la maison",
    "two by two, please.",
]
SPECIAL = (
    *("<unk>", "<|nospeech|>", "<pad>", "<|endoftext|>", "<|startoftranscript|>", "<|pnc|>", "<|nopnc|>"),
    *("<|startofcontext|>", "<|itn|>", "<|noitn|>", "<|timestamp|>", "<|notimestamp|>", "<|diarize|>"),
    *(
        "<|nodiarize|>",
        "<|spkchange|>",
        "<|audioseparator|>",
        "<|emo:undefined|>",
        "<|en|>",
        "<|de|>",
        "<|fr|>",
    ),
)
"""The first tokens of the published vocabularies, with fewer languages."""
NUM_PIECES = 64
KINDS = ("parakeet_ctc", "parakeet_rnnt", "parakeet_tdt", "canary", "cohere_asr")
_ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_kernel_size": 5,
    "subsampling_conv_channels": 8,
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A directory, and the model in it as transformers and as we have it."""

    kind: str
    directory: Path
    hf_model: Any
    processor: Any
    model: Parakeet | Canary

    def inputs(self, sounds: list[np.ndarray]) -> Any:
        """What transformers' model is given for sounds."""
        made = self.extractor(sounds, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        return type(made)({name: made[name] for name in ("input_features", "attention_mask")})

    @property
    def extractor(self) -> Any:
        return self.processor.feature_extractor


def sound(duration_s: float, seed: int = 0) -> np.ndarray:
    """Noise whose colour and strength change every 80 ms, so that no two frames are alike."""
    rng = np.random.default_rng(seed)
    pieces = [
        rng.uniform(0.02, 0.5) * np.sin(np.arange(1280) * rng.uniform(0.05, 2.5))
        + 0.02 * rng.normal(size=1280)
        for _ in range(int(duration_s / 0.08) + 1)
    ]
    return np.concatenate(pieces)[: int(duration_s * SAMPLE_RATE)].astype(np.float32)


def make_tokenizer(*, special: bool, blank: str | None) -> Tokenizer:
    """Byte pairs behind "▁", as converted from SentencePiece; a blank comes last."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    first = list(SPECIAL) if special else ["<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=NUM_PIECES, special_tokens=first, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    if blank is not None:
        tokenizer.add_special_tokens([AddedToken(blank, special=True)])
    return tokenizer


def make(
    root: Path, kind: str, *, biases: bool = True, seed: int = 0, width: int = 32, num_mel_bins: int = 40
) -> Checkpoint:
    """Write a checkpoint with transformers, and load it."""
    blank = {"parakeet_ctc": "<pad>", "canary": None, "cohere_asr": None}.get(kind, "<blank>")
    tokens = make_tokenizer(special=kind != "parakeet_ctc", blank=blank)
    size = tokens.get_vocab_size()
    encoder = {**_ENCODER, "attention_bias": biases, "convolution_bias": biases}
    encoder |= {"hidden_size": width, "num_mel_bins": num_mel_bins}
    encoder["scale_input"] = kind == "parakeet_ctc"
    torch.manual_seed(seed)
    hf_model = _hf_model(kind, encoder, size)
    extractor: Any = ParakeetFeatureExtractor(feature_size=encoder["num_mel_bins"])
    if kind == "cohere_asr":
        extractor = transformers.CohereAsrFeatureExtractor(feature_size=encoder["num_mel_bins"])
    _enliven(hf_model, kind, extractor)
    if kind == "cohere_asr":  # or transformers would put a token in front of the prompt
        hf_model.generation_config.decoder_start_token_id = tokens.token_to_id("▁")
    processor: Any
    if kind in ("canary", "cohere_asr"):
        tokenizer = TokenizersBackend(tokenizer_object=tokens, eos_token="<|endoftext|>", pad_token="<pad>")
        processors = {"canary": transformers.CanaryProcessor, "cohere_asr": transformers.CohereAsrProcessor}
        processor = processors[kind](extractor, tokenizer)
    else:
        tokenizer = ParakeetTokenizer(tokenizer_object=tokens, pad_token="<pad>", unk_token="<unk>")
        processor = ParakeetProcessor(extractor, tokenizer, decoder_type=kind.removeprefix("parakeet_"))
    directory = root / kind
    hf_model.save_pretrained(directory)
    processor.save_pretrained(directory)
    name_languages(directory, LANGUAGES)
    return Checkpoint(
        kind=kind, directory=directory, hf_model=hf_model, processor=processor, model=load(directory)
    )


def name_languages(directory: Path, languages: list[str]) -> None:
    path = directory / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "sprachbund": {"source_languages": languages}})
    )


def _hf_model(kind: str, encoder: dict[str, Any], size: int) -> Any:
    if kind == "cohere_asr":
        of_cohere = transformers.CohereAsrConfig(
            encoder_config={"model_type": "parakeet_encoder", **encoder},
            vocab_size=size,
            hidden_size=48,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
        return transformers.CohereAsrForConditionalGeneration(of_cohere).eval()
    if kind == "canary":
        decoder = {
            "vocab_size": size,
            "hidden_size": encoder["hidden_size"],
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": encoder["hidden_size"] // 2,
            "max_position_embeddings": 64,
        }
        config = transformers.CanaryConfig(
            encoder_config={"model_type": "parakeet_encoder", **encoder},
            decoder_config=decoder,
            vocab_size=size,
        )
        return transformers.CanaryForConditionalGeneration(config).eval()
    if kind == "parakeet_ctc":
        of_ctc = transformers.ParakeetCTCConfig(
            encoder_config=encoder, vocab_size=size, pad_token_id=size - 1
        )
        return transformers.ParakeetForCTC(of_ctc).eval()
    config_class, model_class = {
        "parakeet_rnnt": (transformers.ParakeetRNNTConfig, transformers.ParakeetForRNNT),
        "parakeet_tdt": (transformers.ParakeetTDTConfig, transformers.ParakeetForTDT),
    }[kind]
    config = config_class(
        encoder_config=encoder,
        vocab_size=size,
        blank_token_id=size - 1,
        decoder_hidden_size=24,
        num_decoder_layers=2,
    )
    return model_class(config).eval()


def _enliven(model: Any, kind: str, extractor: Any) -> None:
    """Random weights that write varied text, and running means that are not noughts and ones."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.normal_(std=(parameter.numel() / len(parameter)) ** -0.5)
            if name.endswith("embed_tokens.weight"):
                parameter.mul_(2.0)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        encoder = model.model.encoder if kind in ("canary", "cohere_asr") else model.encoder
        inputs = extractor([sound(4.0, 9)], sampling_rate=SAMPLE_RATE, return_tensors="pt")
        states = encoder(inputs.input_features, attention_mask=inputs.attention_mask).last_hidden_state[
            0, :-1
        ]
        # States of mean 0, so that what is alike in all frames does not decide everything.
        deviation, mean = torch.std_mean(states, dim=0)
        norm = encoder.layers[-1].norm_out
        norm.weight.div_(deviation)
        norm.bias.copy_((norm.bias - mean) / deviation)
        if kind in ("parakeet_rnnt", "parakeet_tdt"):
            model.encoder_projector.weight.mul_(2.0)
            model.encoder_projector.bias.zero_()
            model.decoder.decoder_projector.weight.mul_(4.0)
            for name, weight in model.decoder.lstm.named_parameters():
                weight.mul_(3.0 if name.startswith("weight") else 1.0)
            model.joint.head.weight[: model.config.vocab_size].mul_(2.0)
            model.joint.head.bias[model.config.blank_token_id] += 9.0 if kind == "parakeet_rnnt" else 4.0
            if kind == "parakeet_tdt":
                model.joint.head.bias[model.config.vocab_size] -= 1.0
            model.joint.head.bias[: len(SPECIAL)] -= (
                20.0  # transformers tells padding from text by its number
            )
            model.generation_config.decoder_start_token_id = model.config.blank_token_id
        if kind == "parakeet_ctc":
            model.ctc_head.bias[-1] += 1.0
        if kind in ("canary", "cohere_asr"):
            model.proj_out.bias.normal_(std=1.0)
            for layer in model.model.decoder.layers:
                layer.encoder_attn.o_proj.weight.mul_(3.0)
                layer.encoder_attn.q_proj.weight.mul_(3.0)
                layer.self_attn.o_proj.weight.mul_(3.0)
            model.model.decoder.embedding_layernorm.weight.mul_(
                0.4
            )  # or a token would follow itself for ever
