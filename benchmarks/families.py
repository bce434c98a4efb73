"""Memory and speed of families at published shapes, with random weights: what a model takes before it is downloaded.

Each shape lives in a process of its own, with one thread. Times are of the processor and not of the clock, so that
other programs on the machine matter less; `SECONDS` of speech are heard, and a decoder writes `TOKENS`. A transducer
searches its frames, whatever it writes, and a model that writes a token for each frame writes all of them. Translators
of texts read a sentence of `SOURCE_TOKENS` in place of speech.

python -m benchmarks.families, or with names of shapes; rows of others stay as they are. --engine native, for example,
computes them by that engine, in rows of their own.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np
import torch
import transformers
from benchmarks.rows import keep
from benchmarks.streaming_speed import random_model as random_streaming_conformer
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.decoding.transducer import transducer_greedy
from sprachbund.engines.benchmark import random_whisper
from sprachbund.engines.choice import EngineChoice, engine_for
from sprachbund.models.audio_llm import (
    AudioLLM,
    GraniteSpeech,
    GraniteSpeechConfig,
    QwenAsr,
    QwenAsrConfig,
    Voxtral,
    VoxtralConfig,
)
from sprachbund.models.audio_llm.tokens import LLMTokens
from sprachbund.models.base import Family, Memory, Target
from sprachbund.models.causal_lm import ChatTemplate
from sprachbund.models.fastconformer import (
    Canary,
    CanaryConfig,
    CohereAsr,
    CohereConfig,
    FastConformerTokens,
    Parakeet,
    ParakeetConfig,
)
from sprachbund.models.io import load
from sprachbund.models.kyutai import ExtractorConfig, Kyutai, KyutaiConfig
from sprachbund.models.moonshine import Moonshine, MoonshineConfig, StreamingMoonshineConfig
from sprachbund.models.prompted import PromptedTranslator
from sprachbund.models.seamless import Seamless
from sprachbund.models.translation import TextTranslator
from sprachbund.models.voxtral_realtime import VoxtralRealtime, VoxtralRealtimeConfig
from sprachbund.util.provenance import commit

SECONDS, TOKENS, REPEATS, SOURCE_TOKENS = 10.0, 40, 3, 30
OUT = Path(__file__).with_suffix(".json")
_ENCODER = {"num_mel_bins": 128, "scale_input": False, "attention_bias": False, "convolution_bias": False}
_PROMPT = (
    *("<|startofcontext|>", "<|startoftranscript|>", "<|emo:undefined|>", "<|pnc|>", "<|noitn|>"),
    *("<|notimestamp|>", "<|nodiarize|>"),
)
_LLM_SPECIAL = (
    *("<s>", "</s>", "[INST]", "[/INST]", "<|audio_pad|>", "[BEGIN_AUDIO]", "[TRANSCRIBE]", "<asr_text>"),
    *("<|im_start|>", "[STREAMING_PAD]"),
)


def _tokens(size: int, languages: tuple[str, ...]) -> FastConformerTokens:
    """A vocabulary of numbers, with the special tokens of a prompt."""
    special = ["<unk>", *_PROMPT, *(f"<|{tag}|>" for tag in languages)]
    names = [*special, "\u2581", *map(str, range(size - len(special) - 1))]
    tokenizer = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    return FastConformerTokens(tokenizer, size, "benchmark")


def _parakeet(**values: Any) -> Callable[[], Family]:
    def build() -> Family:
        config = ParakeetConfig.model_validate({"pad_token_id": 2, **values})
        return Parakeet(config, values, _tokens(config.vocab_size, ())).eval()

    return build


def _canary(encoder_layers: int, decoder_layers: int, vocabulary: int) -> Callable[[], Family]:
    def build() -> Family:
        values = {
            "model_type": "canary",
            "encoder_config": {**_ENCODER, "num_hidden_layers": encoder_layers},
            "decoder_config": {"num_hidden_layers": decoder_layers, "vocab_size": vocabulary},
            "vocab_size": vocabulary,
        }
        config = CanaryConfig.model_validate(values)
        return Canary(config, values, _tokens(vocabulary, config.languages("canary", "benchmark"))).eval()

    return build


def _cohere() -> Family:
    size = 16_384
    encoder = {**_ENCODER, "num_hidden_layers": 48, "hidden_size": 1280, "intermediate_size": 5120}
    values = {"model_type": "cohere_asr", "encoder_config": encoder, "vocab_size": size}
    config = CohereConfig.model_validate(values)
    return CohereAsr(config, values, _tokens(size, config.languages("cohere_asr", "benchmark"))).eval()


def _llm_tokens(size: int) -> LLMTokens:
    """A vocabulary of numbers, with the special tokens of all prompts."""
    special = [*_LLM_SPECIAL, *(f"<SPECIAL_{n}>" for n in range(40 - len(_LLM_SPECIAL)))]
    names = [*special, *map(str, range(size - len(special)))]
    tokenizer = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<s>"))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    return LLMTokens(tokenizer, size, "benchmark")


def _random(
    build: Callable[[], AudioLLM | VoxtralRealtime | Kyutai | Seamless], dtype: torch.dtype = torch.bfloat16
) -> Callable[[], Family]:
    """A model in the precision that it is published in."""

    def made() -> Family:
        with torch.device("meta"):
            model = build()
        buffers = {name: buffer for name, buffer in model.named_buffers() if not buffer.is_meta}
        for name, parameter in list(model.named_parameters()):
            values = torch.empty(parameter.shape, dtype=dtype).uniform_(-0.02, 0.02)
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, torch.nn.Parameter(values, requires_grad=False))
        for name, buffer in list(model.named_buffers()):
            if name not in buffers:
                owner, _, last = name.rpartition(".")
                kind = dtype if buffer.is_floating_point() else buffer.dtype
                model.get_submodule(owner)._buffers[last] = torch.ones(buffer.shape, dtype=kind)
        return model.eval()

    return made


def _voxtral() -> AudioLLM:
    values = {"model_type": "voxtral", "text_config": {}}
    return Voxtral(VoxtralConfig.model_validate(values), values, _llm_tokens(131_072), [2])


def _voxtral_realtime() -> VoxtralRealtime:
    values = {
        "model_type": "voxtral_realtime",
        "audio_config": {"rope_parameters": {"rope_theta": 1e6}},
        "text_config": {},
    }
    config = VoxtralRealtimeConfig.model_validate(values)
    return VoxtralRealtime(config, values, _llm_tokens(131_072), [2], lead=32, delay=6)


def _granite(width: int, inner_width: int) -> Callable[[], AudioLLM]:
    def build() -> AudioLLM:
        text = {
            "hidden_size": width,
            "intermediate_size": inner_width,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 49_160,
            "max_position_embeddings": 131_072,
        }
        values = {
            "model_type": "granite_speech",
            "text_config": text,
            "encoder_config": {"num_layers": 16, "output_dim": 256},
            "projector_config": {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 2,
                "num_attention_heads": 16,
                "encoder_hidden_size": 1024,
                "cross_attention_frequency": 1,
            },
            "audio_token_index": 4,
        }
        template = ChatTemplate("{{ messages[0].content }}", {}, "benchmark")
        config = GraniteSpeechConfig.model_validate(values)
        return GraniteSpeech(config, values, _llm_tokens(49_160), [2], template)

    return build


def _moonshine(width: int, layers: int) -> Callable[[], Family]:
    def build() -> Family:
        values = {
            "model_type": "moonshine",
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "encoder_num_hidden_layers": layers,
            "decoder_num_hidden_layers": layers,
        }
        config = MoonshineConfig.model_validate(values)
        model = Moonshine(config, values, _tokens(config.vocab_size, ()), "en").eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        return model

    return build


def _kyutai(delay_s: float, prefix_s: float, **values: Any) -> Callable[[], Family]:
    """The decoder in the precision that it is published in; the codec is in single precision."""

    def build() -> Kyutai:
        said = {"model_type": "kyutai_speech_to_text", "codec_config": {}, **values}
        config = KyutaiConfig.model_validate(said)
        extractor = ExtractorConfig(audio_delay_seconds=delay_s, audio_silence_prefix_seconds=prefix_s)
        return Kyutai(config, extractor, said, _tokens(config.vocab_size, ()), ["en"])

    def made() -> Family:
        model = _random(build)()
        assert isinstance(model, Kyutai)
        model.codec.float()
        return model

    return made


def _qwen(audio: dict[str, Any], text: dict[str, Any]) -> Callable[[], AudioLLM]:
    def build() -> AudioLLM:
        values = {"model_type": "qwen3_asr", "audio_config": audio, "text_config": text, "audio_token_id": 4}
        template = ChatTemplate("{{ messages[0].content[0].text }}<|audio_pad|><|im_start|>", {}, "benchmark")
        return QwenAsr(QwenAsrConfig.model_validate(values), values, _llm_tokens(151_936), [2], template)

    return build


def _streaming_moonshine() -> Family:
    values = {"model_type": "moonshine_streaming", "encoder_config": {}}
    config = StreamingMoonshineConfig.model_validate(values)
    model = Moonshine(config, values, _tokens(config.vocab_size, ()), "en").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model


def _translator(config: str, **values: Any) -> Callable[[], Family]:
    """A translator of texts without a vocabulary, whose encoder and decoder alone are run."""

    def build() -> Family:
        made = getattr(transformers, config)(**values)
        return TextTranslator(made, transformers.GenerationConfig(max_length=200)).eval()

    return build


def _language_model() -> Family:
    """Qwen3 of 1.7 billion weights, with a vocabulary of numbers and the tokens of its chat."""
    special = ["<unk>", "<|im_start|>", "<|im_end|>"]
    names = [*special, *map(str, range(151_936 - len(special)))]
    tokenizer = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    chat = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
    )
    chat.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    config = transformers.Qwen3Config(hidden_size=2048, intermediate_size=6144, num_hidden_layers=28)
    config.update({"num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": True})
    made = transformers.Qwen3ForCausalLM(config)
    return PromptedTranslator(made.eval(), chat, ["en", "de"]).eval()


SHAPES: Mapping[str, Callable[[], Family]] = {
    "conformer, as bundled": load,
    "whisper small": lambda: random_whisper("small"),
    "whisper large-v3-turbo": lambda: random_whisper("turbo"),
    "Parakeet TDT 0.6B v3": _parakeet(
        model_type="parakeet_tdt", vocab_size=8193, blank_token_id=8192, encoder_config=_ENCODER
    ),
    "Parakeet CTC 1.1B": _parakeet(
        model_type="parakeet_ctc",
        vocab_size=1025,
        pad_token_id=1024,
        encoder_config={"num_mel_bins": 80, "num_hidden_layers": 42},
    ),
    "Moonshine tiny": _moonshine(288, 6),
    "Moonshine base": _moonshine(416, 8),
    "streaming Moonshine tiny": _streaming_moonshine,
    "Kyutai STT 1B, bf16": _kyutai(
        0.5,
        0.0,
        num_hidden_layers=16,
        num_attention_heads=16,
        vocab_size=8001,
        sliding_window=750,
    ),
    "Kyutai STT 2.6B, bf16": _kyutai(2.5, 1.0),
    "Canary 1B flash": _canary(32, 4, 5248),
    "Canary 1B v2": _canary(32, 8, 16_384),
    "Qwen3-ASR 0.6B, bf16": _random(
        _qwen(
            {
                "d_model": 896,
                "encoder_layers": 18,
                "encoder_attention_heads": 14,
                "encoder_ffn_dim": 3584,
                "output_dim": 1024,
            },
            {"hidden_size": 1024, "intermediate_size": 3072},
        )
    ),
    "Qwen3-ASR 1.7B, bf16": _random(_qwen({"output_dim": 2048}, {})),
    "Granite Speech 3.3 2B, bf16": _random(_granite(2048, 8192)),
    "Voxtral Mini 3B, bf16": _random(_voxtral),
    "Voxtral Mini 4B Realtime, bf16": _random(_voxtral_realtime),
    "Cohere ASR 2B": _cohere,
    "streaming transducer 0.6B": lambda: random_streaming_conformer("published"),
    "SeamlessM4T v2 large": _random(lambda: Seamless.shape("large-v2"), torch.float32),
    "M2M-100 418M": _translator("M2M100Config", vocab_size=128_112),
    "NLLB-200 distilled 600M": _translator(
        "M2M100Config", vocab_size=256_206, decoder_ffn_dim=4096, encoder_ffn_dim=4096
    ),
    "mBART-50": _translator("MBartConfig", vocab_size=250_054),
    "Opus-MT": _translator(
        "MarianConfig",
        vocab_size=58_101,
        d_model=512,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        pad_token_id=58_100,
        decoder_start_token_id=58_100,
        activation_function="swish",
        scale_embedding=True,
    ),
    "MADLAD-400 3B": _translator(
        "T5Config",
        vocab_size=256_000,
        d_model=1024,
        d_kv=128,
        d_ff=8192,
        num_layers=32,
        num_heads=16,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    ),
    "Qwen3 1.7B as a translator": _language_model,
}
"""Names to builders of random models, or of the bundled one."""


def measure(name: str, engine: EngineChoice, repeats: int) -> dict[str, Any]:
    """The row of a shape, computed by an engine."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    family = SHAPES[name]()
    assert isinstance(family, torch.nn.Module)
    parameters = sum(p.numel() for p in family.parameters())
    num_bytes = sum(p.nbytes for p in family.parameters())
    if engine != "torch":
        family = engine_for(family, engine, threads=1, compare=False).family
    sound = (0.1 * np.random.default_rng(0).normal(size=int(SECONDS * SAMPLE_RATE))).astype(np.float32)
    encoding, writing = [], []
    with torch.inference_mode():
        for _ in range(repeats):
            begin = time.process_time()
            memory = _read(family, sound)
            encoded = time.process_time()
            _write(family, memory)
            encoding.append(encoded - begin)
            writing.append(time.process_time() - encoded)
    return {
        "shape": name,
        "engine": engine,
        "parameters (million)": round(parameters / 1e6),
        "weights (GB)": round(num_bytes / 1e9, 2),
        "peak memory (GB)": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        f"encoder, {SECONDS:g} s of speech (s)": round(median(encoding), 2),
        "decoder (s)": round(median(writing), 2),
    }


def _read(family: Family, sound: np.ndarray) -> Memory:
    if isinstance(family, PromptedTranslator):
        return family.encode(family.text_features([" ".join(map(str, range(SOURCE_TOKENS)))]))
    if not isinstance(family, TextTranslator):
        return family.encode(family.features([sound]))
    length = torch.tensor([SOURCE_TOKENS])
    tokens = torch.arange(4, 4 + SOURCE_TOKENS)[None]
    return Memory(states=family.encoder(family.embedding(tokens), length), num_frames=length)


def _write(family: Family, memory: Memory) -> None:
    able = family.capabilities
    if able.transducer is not None:
        transducer_greedy(able.transducer, memory.states, memory.num_frames)
    elif able.ctc is not None:
        able.ctc.ctc_log_probs(memory, [[Target(language="en")]])
    elif able.frame_decoder is not None:
        able.frame_decoder.write_frames(memory.states, able.frame_decoder.start_frames(1))
    else:
        cache = (
            family.decoder.start(memory.states, memory.num_frames, capacity=TOKENS + 1)
            if isinstance(family, TextTranslator | Seamless)
            else family.start(memory, capacity=TOKENS + 1, targets=[Target(language="en", source="en")])
        )
        token = torch.zeros(1, 1, dtype=torch.long)
        for _ in range(TOKENS):
            token = family.step(token, cache)[:, -1:].argmax(-1)


def main() -> None:
    """Measure the shapes named, all by default, and write their rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--engine", default="torch", choices=sorted(get_args(EngineChoice)))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.engine, arguments.repeats)))
        return
    known: dict[tuple[str, str], Any] = {}
    if arguments.out.exists():
        known = {(row["shape"], row["engine"]): row for row in json.loads(arguments.out.read_text())["rows"]}
    for name in arguments.shapes or SHAPES:
        command = [sys.executable, "-m", "benchmarks.families", "--one", name]
        command += ["--engine", arguments.engine, "--repeats", str(arguments.repeats)]
        row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        known[name, arguments.engine] = row
        engines = sorted({used for _, used in known}, key=lambda used: (used != "torch", used))
        rows = [known[key] for shape in SHAPES for used in engines if (key := (shape, used)) in known]
        keep(arguments.out, {"commit": commit(), "rows": rows})


if __name__ == "__main__":
    main()
