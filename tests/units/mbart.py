"""A tiny mBART-50 checkpoint with random weights, whose SentencePiece model was trained on words of tones."""

import io
from pathlib import Path

import sentencepiece
import torch
from transformers import MBartConfig, MBartForConditionalGeneration

from tests.units.made import words

NUM_CODES = 52


def write_mbart(directory: Path) -> Path:
    """As transformers has it, in the layout of mBART-50's tokens, with activation and scaling as published."""
    directory.mkdir(parents=True)
    model = io.BytesIO()
    lines = [f"{word} {word.upper()}" for word in words(200, seed=5)] + ["xyz 123"] * 9
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=90, model_type="unigram", minloglevel=2
    )
    (directory / "sentencepiece.bpe.model").write_bytes(model.getvalue())
    torch.manual_seed(1)
    config = MBartConfig(
        vocab_size=90 + 1 + NUM_CODES + 1,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=20,
        activation_function="relu",
        scale_embedding=True,
        max_position_embeddings=64,
        decoder_start_token_id=2,
        init_std=0.3,
    )
    reference = MBartForConditionalGeneration(config)
    with torch.no_grad():
        reference.final_logits_bias.normal_()
        for name, weight in reference.named_parameters():
            if name.endswith(".bias"):
                weight.normal_(std=0.1)
    reference.save_pretrained(directory)
    return directory
