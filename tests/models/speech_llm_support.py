"""Tiny random speech LLMs: every kind of encoder and of language model that is taken."""

from functools import cache
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from sprachbund.data.batch import Batch
from sprachbund.models.conformer import ConformerConfig
from sprachbund.models.speech_llm import ProjectorOptions, SpeechLLM, SpeechLLMConfig
from sprachbund.models.speech_llm.checkpoints import TransformersSpeech
from sprachbund.models.speech_llm.encoders import ConformerSpeech, WhisperSpeech
from sprachbund.models.whisper.config import WhisperConfig

START, END, PAD = "<s>", "</s>", "<pad>"
VOCABULARY = 272
LLMS = {
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "llama": "Llama",
    "mistral": "Mistral",
    "gemma2": "Gemma2",
    "phi3": "Phi3",
    "gpt2": "GPT2",
}
ADAPTED = {"phi3": ("qkv_proj",), "gpt2": ("c_attn",)}
ENCODERS = ("whisper", "conformer", "wavlm", "wavlm by group", "wav2vec2", "wav2vec2-bert")
GROUPS = (("es",), ("en", "de"), ("zh",))


@cache
def tokenizer(chat: str | None = None) -> Any:
    """Bytes and three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([PAD, START, END, *alphabet])}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token=START, eos_token=END, pad_token=PAD
    )
    made.chat_template = chat
    return made


def make_llm(kind: str = "qwen2", **changes: Any) -> Any:
    """A causal language model of two layers with random weights large enough to prefer some tokens."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "tie_word_embeddings": kind == "gemma2",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **changes,
    }
    config = getattr(transformers, LLMS[kind] + "Config")(**sizes)
    name = LLMS[kind] + ("LMHeadModel" if kind == "gpt2" else "ForCausalLM")
    return getattr(transformers, name)(config).eval()


def make_encoder(kind: str = "conformer") -> Any:
    """An encoder of one or two layers."""
    torch.manual_seed(2)
    if kind == "whisper":
        shape = {"encoder_layers": 2, "encoder_heads": 2, "encoder_feed_forward_width": 24}
        unused = {"decoder_layers": 1, "decoder_heads": 2, "decoder_feed_forward_width": 24}
        return WhisperSpeech(
            WhisperConfig(vocabulary_size=10, width=16, num_mel_bins=80, max_frames=200, **shape, **unused)
        )
    if kind == "conformer":
        sizes = {"width": 16, "num_heads": 2, "num_encoder_layers": 2, "feed_forward_width": 24}
        return ConformerSpeech(
            ConformerConfig(source_languages=("es",), target_languages=("en",), kernel_size=5, **sizes)
        )
    return _reference(kind)


def _reference(kind: str) -> TransformersSpeech:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 24, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    if kind == "wav2vec2-bert":
        config = transformers.Wav2Vec2BertConfig(**sizes, conv_depthwise_kernel_size=5)
        return TransformersSpeech(
            transformers.Wav2Vec2BertModel(config).eval(), transformers.SeamlessM4TFeatureExtractor()
        )
    convolutions = {"conv_dim": (8, 8), "conv_kernel": (20, 20), "conv_stride": (16, 20)}
    by_group = kind == "wavlm by group"
    name = "WavLM" if kind.startswith("wavlm") else "Wav2Vec2"
    config = getattr(transformers, name + "Config")(
        **sizes,
        **convolutions,
        num_feat_extract_layers=2,
        feat_extract_norm="group" if by_group else "layer",
        do_stable_layer_norm=not by_group,
    )
    model = getattr(transformers, name + "Model")(config).eval()
    return TransformersSpeech(model, transformers.Wav2Vec2FeatureExtractor(do_normalize=not by_group))


def make_config(**changes: Any) -> SpeechLLMConfig:
    sizes: dict[str, Any] = {"groups": GROUPS, "group_size": 2, "hidden_width": 12, "spliced_frames": 2}
    sizes |= changes.pop("projector", {})
    projector = ProjectorOptions(**sizes)
    options = {"target_languages": ("en", "de", "es"), "max_new_tokens": 24, **changes}
    return SpeechLLMConfig(projector=projector, **options)


def make_model(encoder: str = "conformer", llm: str = "qwen2", **changes: Any) -> SpeechLLM:
    made, language_model = make_encoder(encoder), make_llm(llm)
    if llm in ADAPTED:
        changes["lora"] = {"llm": ADAPTED[llm]}
    torch.manual_seed(3)
    return SpeechLLM(made, language_model, make_config(**changes), tokenizer=tokenizer())


def speech(*durations_s: float) -> list[np.ndarray]:
    """Noise that comes and goes."""
    made = []
    for i, duration_s in enumerate(durations_s):
        time = np.arange(round(duration_s * 16_000)) / 16_000
        noise = np.random.default_rng(i).standard_normal(len(time))
        made.append((0.2 * noise * np.sin(2 * np.pi * (1 + i) * time)).astype(np.float32))
    return made


def make_batch(
    model: SpeechLLM, sources: list[int], texts: list[str], languages: list[int], durations_s: list[float]
) -> Batch:
    """A batch with as many rows as texts; no text is a row that does not count."""
    features = model.features(speech(*durations_s))
    rows = [[*model.prompts.text_to_tokens(text), model.end_token] if text else [] for text in texts]
    lengths = torch.tensor([len(row) for row in rows])
    targets = torch.zeros(len(rows), max(1, int(lengths.max())), dtype=torch.long)
    for i, row in enumerate(rows):
        targets[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return Batch(
        features=features.values,
        num_frames=features.num_frames,
        source_language=torch.tensor(sources),
        targets=targets,
        num_targets=lengths,
        target_language=torch.tensor(languages),
    )


def move_adapters(model: SpeechLLM) -> SpeechLLM:
    """Adapters that do something: new ones multiply by zero."""
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model
