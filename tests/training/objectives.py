"""Every objective that the loop trains, small: what one process and several of them are compared on.

Shapes are tiny and nothing is drawn at random but what a batch shares, so that gradients can be compared.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sprachbund.compression.distillation import Distillation
from sprachbund.compression.options import DistillationOptions
from sprachbund.data.bitext import read_bitext
from sprachbund.data.loading import Corpus, ExampleOptions
from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.models import whisper
from sprachbund.models.audio_llm.model import AudioLLMExamples
from sprachbund.models.conformer import Conformer, StreamingPart, TransducerPart
from sprachbund.models.fastconformer.model import Canary, CanaryExamples, ParakeetExamples
from sprachbund.models.seamless.model import SeamlessExamples
from sprachbund.models.speech_llm import STAGES, PromptOptions
from sprachbund.models.speech_llm.config import LossWeights
from sprachbund.models.speech_llm.llm import (
    Prompts,
    TextExamples,
    TextLLM,
    TextLLMOptions,
    fit_tokenizer,
    make_text_llm,
)
from sprachbund.models.speech_llm.model import SpeechLLMExamples
from sprachbund.models.speech_llm.stages import enter
from sprachbund.models.tokens.config import MbartConfig
from sprachbund.models.tokens.reader import UnitReader
from sprachbund.models.whisper.extension import set_prompt
from sprachbund.models.whisper.model import WhisperExamples
from sprachbund.research.code_switch.transition import Transition
from sprachbund.training.draft import DraftOptions, DraftTraining, make_network
from sprachbund.training.dual_scale import DualScaleOptions, make_dual_scale
from sprachbund.units.dataset import Mixing, SpokenSentences, TokenDataset, WrittenSentences
from sprachbund.units.mbart import start_from_mbart, units_with_mbart
from tests.models.audio_llm import support as audio_llms
from tests.models.fastconformer import support as fast_conformers
from tests.models.seamless.support import make_checkpoint
from tests.models.speech_llm_support import make_model as make_speech_llm
from tests.training import made, made_split, owned
from tests.units import translators
from tests.units.made import words
from tests.units.mbart import write_mbart

PLAIN: dict[str, Any] = {"time_masks": 0, "frequency_masks": 0}
LANGUAGES = made.LANGUAGES


@dataclass(frozen=True)
class Objective:
    """What is trained, and on what."""

    model: Any
    corpus: Any


def conformer(**changes: Any) -> Conformer:
    plain = made.make_model()
    torch.manual_seed(0)
    config = plain.config.model_copy(update=changes)
    return Conformer(config, plain.tokenizer, plain.transcript_tokenizer)


def on_tones(root: Path, model: Any) -> Objective:
    return Objective(model, made.make_training_data(root / "data", **PLAIN))


def transducer(weight: float, **changes: Any) -> dict[str, Any]:
    sizes = {"prediction_width": 24, "prediction_layers": 1, "joint_width": 32}
    return {"transducer": TransducerPart(**sizes, weight=weight), **changes}


STREAMING = {"streaming": StreamingPart(left_context=16, right_contexts=(6, 3, 1, 0), stem_channels=8)}


def of_whisper(root: Path, build: Callable[[Any], Any] = lambda model: model, **drawn: Any) -> Objective:
    if not (root / "whisper").exists():
        owned.make_whisper(root / "whisper")
        owned.make_tones(root / "tones", silence=1)
    model = set_prompt(whisper.load(root / "whisper"), "wanted-only", ["en", "de"])
    options = ExampleOptions(**{"rows_per_utterance": 2, **PLAIN, **drawn})
    corpus = Corpus([(Manifest(root / "tones"), 1.0)], WhisperExamples(model, LANGUAGES), options)
    return Objective(build(model), corpus)


def of_seamless(root: Path) -> Objective:
    from sprachbund.models import seamless

    still = dict.fromkeys(
        ("dropout", "attention_dropout", "activation_dropout", "speech_encoder_dropout", "adaptor_dropout"),
        0.0,
    )
    make_checkpoint(root / "seamless", "seamless_m4t_v2", speech_encoder_layerdrop=0.0, **still)
    model = seamless.load(root / "seamless")
    options = ExampleOptions(rows_per_utterance=1, **PLAIN)
    english = Manifest(root / "data", {"de": 0.0})
    return Objective(model, Corpus([(english, 1.0)], SeamlessExamples(model, ["en"]), options))


def of_fast_conformer(root: Path, kind: str) -> Objective:
    model = fast_conformers.make(root / "nemo", kind).model
    examples = CanaryExamples if isinstance(model, Canary) else ParakeetExamples
    options = ExampleOptions(rows_per_utterance=1, same_language=1.0, **PLAIN)
    manifest = Manifest(slow_speech(root / "slow"))
    corpus = Corpus([(manifest, 1.0)], examples(model, LANGUAGES), options)  # type: ignore[arg-type]
    return Objective(model, corpus)


def slow_speech(directory: Path) -> Path:
    """Two seconds for each word: frames of 80 ms are enough for its pieces, or CTC would have no way to write them."""
    if not directory.exists():
        with ManifestWriter(directory) as writer:
            for number in range(8):
                language = LANGUAGES[number % 2]
                writer.add(
                    fast_conformers.sound(2.0, number),
                    text=made.WORDS[language][number // 2],
                    language=language,
                    speaker="noise",
                    utterance_id=f"noise-{number}",
                )
    return directory


def of_audio_llm(root: Path, kind: str) -> Objective:
    model = audio_llms.make(root / "audio-llm", kind).model
    options = ExampleOptions(rows_per_utterance=1, same_language=1.0, **PLAIN)
    corpus = Corpus([(Manifest(root / "data"), 1.0)], AudioLLMExamples(model, LANGUAGES), options)
    return Objective(model, corpus)


def of_speech_llm(root: Path, *, mixed: bool) -> Objective:
    model = make_speech_llm(
        projector={"groups": (("en",), ("de",)), "spliced_frames": 1},
        target_languages=LANGUAGES,
        losses=LossWeights(balance=0.0),
    )
    enter(model, STAGES[2])
    options = ExampleOptions(rows_per_utterance=2, max_tokens=24, mixed=True, **PLAIN)
    sides = [
        Corpus([(Manifest(root / name), 1.0)], SpeechLLMExamples(model, LANGUAGES), options)
        for name in ("data", "other")
    ]
    return Objective(model, Transition(*sides, steps=3, seed=3) if mixed else sides[0])


def of_text_llm(root: Path) -> Objective:
    sizes = TextLLMOptions(
        width=16, num_layers=1, num_heads=2, inner_width=24, vocabulary_size=300, context=128
    )
    tokenizer = fit_tokenizer([" ".join(w) for w in made.WORDS.values()], LANGUAGES, PromptOptions(), 300)
    prompts = Prompts(tokenizer, PromptOptions(), len(tokenizer))
    torch.manual_seed(0)
    model = TextLLM(make_text_llm(sizes, tokenizer), prompts, LANGUAGES, LANGUAGES)
    options = ExampleOptions(rows_per_utterance=2, spoken=True, **PLAIN)
    examples = TextExamples(prompts, LANGUAGES, LANGUAGES, 64)
    return Objective(model, Corpus([(Manifest(root / "data"), 1.0)], examples, options))


def _spoken(root: Path) -> translators.Spoken:
    if not _SPOKEN:
        _SPOKEN.append(translators.speak(root / "units"))
    lines = [f"{word}\t{word.upper()}" for word in words(6, seed=9)]
    (root / "pairs.tsv").write_text("\n".join(["de\tfr", *lines]) + "\n")
    return _SPOKEN[0]


_SPOKEN: list[translators.Spoken] = []


def of_tokens(root: Path, *, text: bool = True, **changes: Any) -> Objective:
    spoken = _spoken(root)
    model = translators.model_of(spoken.units, **changes)
    parts: list[Any] = [SpokenSentences(spoken.encoded, translators.PAIRS)]
    if text:
        parts += [
            SpokenSentences(spoken.encoded, translators.PAIRS, as_text=True),
            WrittenSentences(read_bitext([root / "pairs.tsv"], "de", "fr")),
        ]
    reader = UnitReader(spoken.units, model.config.ratio)
    return Objective(model, TokenDataset(parts, model.config, reader, Mixing(text=text, sampling=0.0)))


def of_mbart(root: Path) -> Objective:
    spoken = _spoken(root)
    parts = [SpokenSentences(spoken.encoded, translators.PAIRS)]
    checkpoint = write_mbart(root / "mbart")
    units = units_with_mbart(spoken.units, checkpoint, parts, ["de", "en", "fr"], root / "mbart-units")
    given = {"pairs": translators.PAIRS, "ratio": 2.0}
    model = start_from_mbart(
        units, checkpoint, lambda shape: MbartConfig(**{**shape.model_dump(), "dropout": 0.0, **given})
    )
    supply = TokenDataset(parts, model.config, UnitReader(units, 2.0), Mixing(text=False, sampling=0.0))
    return Objective(model, supply)


def of_draft(root: Path, kind: Any) -> Objective:
    model = conformer(num_decoder_layers=2)
    options = DraftOptions(kind=kind, blocks=2, heads=2)
    torch.manual_seed(1)
    return on_tones(root, DraftTraining(model, make_network(model, options), options))


def of_distillation(root: Path, **changes: Any) -> Objective:
    torch.manual_seed(1)
    teacher = conformer(num_decoder_layers=2)
    return on_tones(root, Distillation(conformer(**changes), teacher, DistillationOptions()))


def of_dual_scale(root: Path, **changes: Any) -> Objective:
    given = {"text_layers": 1, "blocks": 1, "whole_layers": 1, "gate_decay": 0.5, **changes}
    options = DualScaleOptions(same_language=0.3, **given)

    def build(model: Any) -> Any:
        torch.manual_seed(1)
        return make_dual_scale(model, options)

    return of_whisper(root, build, same_language=0.3, spoken=True, rows_per_utterance=1)


OBJECTIVES: Mapping[str, Callable[[Path], Objective]] = {
    "attention and CTC": lambda root: on_tones(root, conformer()),
    "attention without CTC": lambda root: on_tones(root, conformer(ctc_weight=0.0)),
    "streaming transducer": lambda root: on_tones(root, conformer(**transducer(1.0, **STREAMING))),
    "streaming transducer without CTC": lambda root: on_tones(
        root, conformer(**transducer(1.0, ctc_weight=0.0, **STREAMING))
    ),
    "transducer and attention": lambda root: on_tones(root, conformer(**transducer(0.25))),
    "split by language": lambda root: on_tones(root, made_split.make_split_model()),
    "whisper": of_whisper,
    "seamless": of_seamless,
    "Parakeet, CTC": lambda root: of_fast_conformer(root, "parakeet_ctc"),
    "Parakeet, transducer with durations": lambda root: of_fast_conformer(root, "parakeet_tdt"),
    "Canary": lambda root: of_fast_conformer(root, "canary"),
    "audio LLM": lambda root: of_audio_llm(root, "qwen3_asr"),
    "speech LLM": lambda root: of_speech_llm(root, mixed=False),
    "speech LLM, two kinds of data": lambda root: of_speech_llm(root, mixed=True),
    "text LLM": of_text_llm,
    "tokens by attention": lambda root: of_tokens(root, head="attention", source_ctc_weight=0.0),
    "tokens by CTC and attention": lambda root: of_tokens(root, head="ctc_attention"),
    "tokens by CTC": lambda root: of_tokens(root, head="ctc"),
    "tokens by transducer": lambda root: of_tokens(root, head="transducer"),
    "tokens, encoders apart": lambda root: of_tokens(root, head="attention", soft_sharing=True),
    "mBART": of_mbart,
    "parasite draft": lambda root: of_draft(root, "parasite"),
    "Medusa draft": lambda root: of_draft(root, "medusa"),
    "distillation": of_distillation,
    "distillation without CTC": lambda root: of_distillation(root, ctc_weight=0.0, **transducer(0.25)),
    "dual scale": of_dual_scale,
    "dual scale, no gate": lambda root: of_dual_scale(root, gate=False, draft="medusa"),
}
"""By name."""
