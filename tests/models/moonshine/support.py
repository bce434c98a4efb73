"""Random Moonshine checkpoints in the true layout, made and written by transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import TokenizersBackend, Wav2Vec2FeatureExtractor

from sprachbund.models.moonshine import Moonshine, load
from tests.models.fastconformer.support import SENTENCES

KINDS = ("moonshine", "moonshine_streaming")
SPECIAL = ("<unk>", "<s>", "</s>")
NUM_PIECES = 64
_SIZES = {"vocab_size": NUM_PIECES, "intermediate_size": 48, "max_position_embeddings": 1024}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A directory, and the model in it as transformers and as we have it."""

    kind: str
    directory: Path
    hf_model: Any
    extractor: Any
    tokenizer: Any
    model: Moonshine


def make_tokenizer() -> Tokenizer:
    """Byte pairs behind "▁", as converted from SentencePiece."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=NUM_PIECES, special_tokens=[*SPECIAL], show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return tokenizer


def make(root: Path, kind: str, *, seed: int = 0, wide: bool = False) -> Checkpoint:
    """Write a checkpoint with transformers, and load it; the encoder of a `wide` one is wider than its decoder."""
    torch.manual_seed(seed)
    if kind == "moonshine":
        config: Any = transformers.MoonshineConfig(
            **_SIZES,
            hidden_size=32,
            encoder_num_hidden_layers=2,
            decoder_num_hidden_layers=2,
            encoder_num_attention_heads=2,
            decoder_num_attention_heads=2,
        )
        hf_model: Any = transformers.MoonshineForConditionalGeneration(config).eval()
    else:
        encoder = {
            "hidden_size": 48 if wide else 32,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "sliding_windows": [[16, 4], [6, 0], [16, 4]],
        }
        config = transformers.MoonshineStreamingConfig(
            **_SIZES,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            encoder_config=encoder,
            decoder_start_token_id=1,
        )
        hf_model = transformers.MoonshineStreamingForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in hf_model.named_parameters():
            if parameter.ndim < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif not name.endswith("embed_tokens.weight"):
                parameter.normal_(std=(parameter.numel() / len(parameter)) ** -0.5)
            else:
                parameter.normal_(std=0.3)
        # Or a token would follow itself for ever: the decoder looks at places in the memory and at its last tokens,
        # and what is alike in all its states decides nothing.
        for layer in hf_model.model.decoder.layers:
            layer.encoder_attn.o_proj.weight.mul_(4.0)
            layer.encoder_attn.q_proj.weight.mul_(4.0)
            layer.mlp.fc2.weight.mul_(3.0)
        tokens = torch.randint(3, NUM_PIECES, (8, 24))
        heard = torch.randn(8, 24_000)
        for _ in range(4):
            states = hf_model.model(heard, decoder_input_ids=tokens).last_hidden_state.flatten(0, 1)
            common = torch.linalg.svd(states).Vh[:4]
            matrix = hf_model.get_output_embeddings().weight
            matrix.sub_(matrix @ common.T @ common)
    hf_model.generation_config.max_length = 200
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    tokenizer = TokenizersBackend(
        tokenizer_object=make_tokenizer(), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    directory = root / kind
    hf_model.save_pretrained(directory)
    extractor.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return Checkpoint(
        kind=kind,
        directory=directory,
        hf_model=hf_model,
        extractor=extractor,
        tokenizer=tokenizer,
        model=load(directory),
    )
