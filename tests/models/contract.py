"""What every family has to do, or to refuse in one clear line: the demands of docs/families.md.

A demand is a function that checks one family and gives a few words for the tables of that page. What a family can do,
its `Capabilities` say; a demand then checks that it does so, and else that it is refused by a `SprachbundError` of one
line.

`python -m tests.models.contract docs/results` writes the tables' rows; `test_contract.py` checks them family by family.
"""

import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.decoding.languages import UNDETERMINED, identify
from sprachbund.decoding.long_form import translate
from sprachbund.decoding.options import NONE, TRANSCRIBE, DecodingOptions, GuardOptions
from sprachbund.decoding.result import Translation
from sprachbund.decoding.search import search
from sprachbund.decoding.texts import translate_texts
from sprachbund.engines.choice import engine_for, pooled
from sprachbund.engines.native_engine import why_not_family
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Target
from sprachbund.models.cascade import Cascade
from sprachbund.models.io import family_of, load, save
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.events import LiveText
from sprachbund.streaming.options import LiveOptions
from sprachbund.streaming.writing import policies_of
from sprachbund.training.preparation import prepare_model
from sprachbund.training.translator import run
from tests.decoding.families import FAMILIES, REGISTERED
from tests.decoding.test_translate import Loudness
from tests.decoding.tiny_family import LANGUAGES, TinyFamily
from tests.models.fastconformer.support import sound
from tests.models.translation.support import make_checkpoint
from tests.models.translation.test_prompted import make_directory as make_language_model
from tests.training.owned import fine_tuning_recipe, make_tones

OPEN = {"max_tokens": 10, "draft": NONE, "guard": GuardOptions(enabled=False)}
"""Options under which a model of random weights writes something."""
YES, REFUSED, NOT_ASKED = "yes", "refused", "-"
SENTENCES = ("der Hund läuft", "the cat runs home")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Builder:
    """How a family's subject is made.

    Attributes:
        build: into an empty folder.
        reference: implementation that its tokens are compared with elsewhere, and the test that does so.
        recipe: of `sprachbund recipe`, which trains it; empty where `train` does, or nothing.
    """

    build: Callable[[Path], Family]
    reference: tuple[str, str]
    recipe: str = ""


def _translator(kind: str) -> Callable[[Path], Family]:
    return lambda root: make_checkpoint(root / kind, kind).model


def _language_model(root: Path) -> Family:
    make_language_model(root / "qwen3")
    return load(root / "qwen3")


_OURS = "one pass of its own"
_REFERENCES: Mapping[str, tuple[str, str]] = {
    "conformer": (_OURS, "tests/models/test_conformer.py"),
    "split conformer": (_OURS, "tests/models/test_splitting.py"),
    "whisper": ("transformers", "tests/models/test_whisper.py"),
    "seamless": ("transformers", "tests/models/seamless/test_model.py"),
    "speech LLM": ("transformers", "tests/models/test_speech_llm.py"),
    "tokens by attention": (_OURS, "tests/models/tokens/test_translator.py"),
    "tokens by CTC": ("brute force", "tests/decoding/test_ctc_search.py"),
    "tokens by CTC and attention": ("brute force", "tests/units/test_joint_model.py"),
    "tokens by transducer": ("brute force", "tests/decoding/test_transducer_search.py"),
    "mBART": ("transformers", "tests/units/test_text_start.py"),
    "cascade": ("its halves", "tests/decoding/test_cascade.py"),
    "streaming transducer": ("transformers", "tests/models/test_transducer_checkpoints.py"),
    "streaming transducer with prompts": ("transformers", "tests/models/test_prompted_transducer.py"),
    "streaming ONNX": ("the model exported", "tests/compression/test_onnx_export.py"),
    "Parakeet CTC": ("transformers", "tests/models/fastconformer/test_model.py"),
    "Parakeet RNNT": ("transformers", "tests/models/fastconformer/test_model.py"),
    "Parakeet TDT": ("transformers", "tests/models/fastconformer/test_model.py"),
    "Canary": ("transformers", "tests/models/fastconformer/test_model.py"),
    "Cohere ASR": ("transformers", "tests/models/fastconformer/test_model.py"),
    "Moonshine": ("transformers", "tests/models/moonshine/test_model.py"),
    "streaming Moonshine": ("transformers", "tests/models/moonshine/test_model.py"),
    "Kyutai STT": ("transformers", "tests/models/kyutai/test_model.py"),
    "Voxtral Realtime": ("transformers", "tests/models/voxtral_realtime/test_model.py"),
    **dict.fromkeys(
        ("Voxtral", "Granite Speech", "Qwen3-ASR"), ("transformers", "tests/models/audio_llm/test_model.py")
    ),
}
_RECIPES: Mapping[str, str] = {
    "speech LLM": "code_switch",
    **dict.fromkeys((name for name in FAMILIES if name.startswith("tokens ")), "discrete_units"),
    "mBART": "discrete_units",
}
BUILDERS: Mapping[str, Builder] = {
    **{
        name: Builder(build=build, reference=_REFERENCES[name], recipe=_RECIPES.get(name, ""))
        for name, build in FAMILIES.items()
    },
    **{
        name: Builder(
            build=_translator(kind), reference=("transformers", "tests/models/translation/test_model.py")
        )
        for name, kind in (
            ("M2M-100, NLLB", "m2m_100"),
            ("mBART-50", "mbart"),
            ("Marian", "marian_many"),
            ("MADLAD-400", "t5"),
        )
    },
    "language model": Builder(
        build=_language_model, reference=("transformers", "tests/models/translation/test_prompted.py")
    ),
}
"""By the name that a family has in the tables."""


@dataclass(kw_only=True)
class Subject:
    """A small model of random weights of a family.

    Attributes:
        name: in the tables.
        family: the model.
        root: a folder of its own.
    """

    name: str
    family: Family
    root: Path

    @cached_property
    def hears(self) -> bool:
        """Whether it takes speech; a translator of texts refuses it."""
        able = self.family.capabilities
        if able.text_input is None or able.translator is not None:
            return True
        try:
            self.family.features([sound(0.5)])
        except SprachbundError as error:
            _one_line(error)
            return False
        return True

    @cached_property
    def pair(self) -> tuple[str, str]:
        """A pair that it knows: a transcription, where it transcribes, but for a cascade's translation."""
        pairs = sorted(self.family.pairs())
        wanted = self.family.capabilities.translator is None
        return next((pair for pair in pairs if (pair[0] == pair[1]) == wanted), pairs[0])

    def written(self, family: Family | None = None, **options: Any) -> Any:
        """What is written for two stretches of speech, or two texts: a `Translation`, or texts.

        Args:
            family: in place of its own, such as a copy.
            options: beside `OPEN`.
        """
        family, (source, target) = family or self.family, self.pair
        wanted = DecodingOptions(**{**OPEN, **options})
        if self.hears:
            return heard(family, target, source, wanted)
        return [row[0].text for row in translate_texts(family, SENTENCES, [target], source, wanted)]

    def text(self, family: Family | None = None, **options: Any) -> str:
        """The same as one text."""
        written = self.written(family, **options)
        return written.text if isinstance(written, Translation) else " ".join(written)


def make_subject(name: str, root: Path) -> Subject:
    """The subject of a family, in an empty folder."""
    return Subject(name=name, family=BUILDERS[name].build(root), root=root)


def talk() -> np.ndarray:
    """Speech from 0.5 s to 2.1 s and from 3.6 s to 4.8 s."""
    pause = np.zeros(SAMPLE_RATE * 3 // 2, np.float32)
    return np.concatenate([pause[: SAMPLE_RATE // 2], sound(1.6, 1), pause, sound(1.2, 2), pause])


def heard(family: Family, target: str, source: str | None, options: DecodingOptions) -> Translation:
    """`talk` in a language."""
    results = translate(
        family, talk(), [target], source, options, sample_rate=SAMPLE_RATE, activity=Loudness()
    )
    return results[target]


def _one_line(error: SprachbundError) -> None:
    """A refusal: one line that is no stub."""
    text = str(error)
    assert len(text.splitlines()) == 1, text
    assert len(text) > 30, text


def refusal(action: Callable[[], object]) -> str:
    """`REFUSED`, if an action is refused in one line; fails if it is not refused."""
    try:
        action()
    except SprachbundError as error:
        _one_line(error)
        return REFUSED
    raise AssertionError("what the capabilities lack was neither done nor refused")


def _attempt(action: Callable[[], object]) -> bool:
    """Whether an action was done; fails if it was refused in more than a line."""
    try:
        action()
    except SprachbundError as error:
        _one_line(error)
        return False
    return True


# Demands on decoding.


def batch_equals_single(subject: Subject) -> str:
    """A row does not depend on the others of its batch."""
    family, (source, target) = subject.family, subject.pair
    if family.capabilities.translator is not None:
        target = source  # the search of a cascade is its recogniser's
    options = DecodingOptions(**OPEN)
    target_of = Target(language=target, source=source)

    def rows(parts: Sequence[Any]) -> list[tuple[int, ...]]:
        able = family.capabilities
        if subject.hears:
            features = family.features(parts)
        else:
            assert able.text_input is not None
            features = able.text_input.text_features(parts)
        memory = family.encode(features)
        return [row[0].tokens for row in search(family, memory, [[target_of]] * len(parts), options)]

    parts: list[Any] = [sound(1.3, 1), sound(0.6, 2), sound(2.0, 3)] if subject.hears else [*SENTENCES]
    with torch.inference_mode():
        assert rows(parts) == [rows([part])[0] for part in parts]
    return YES


def beam(subject: Subject) -> str:
    """A beam of three, or a refusal where the search is greedy alone."""
    able = subject.family.capabilities
    durations = able.transducer is not None and able.transducer.shape.durations
    if durations or able.frame_decoder is not None:
        return refusal(lambda: subject.text(beam_size=3))
    subject.text(beam_size=3)
    return YES


def long_recording(subject: Subject) -> str:
    """Spans come in order, inside the recording, and do not depend on how many are computed together."""
    if not subject.hears:
        return NOT_ASKED
    results = [subject.written(batch_size=size) for size in (1, 4)]
    assert results[0].text == results[1].text
    for result in results:
        segments = [*result.segments, *result.dropped]
        assert len({round(segment.start_s) for segment in segments}) > 1
        times = sorted((s.start_s, s.end_s) for s in segments)
        assert all(0 <= start <= end <= len(talk()) / SAMPLE_RATE for start, end in times)
        assert all(before[1] <= after[0] + 1e-6 for before, after in pairwise(times))
    return YES


def times_of_words(subject: Subject) -> str:
    """Words with times that never go back, inside their segment; a cascade's may go back."""
    if not subject.hears:
        return refusal(lambda: subject.text(word_timestamps=True))
    able = subject.family.capabilities
    second = None if able.translator is None else able.translator.family.capabilities.token_offsets
    if able.alignment is None or (able.translator is not None and second is None):
        return refusal(lambda: subject.text(word_timestamps=True))
    result = subject.written(word_timestamps=True)
    for segment in result.segments:
        seconds = [
            segment.start_s,
            *(second for word in segment.words for second in (word.start_s, word.end_s)),
            segment.end_s,
        ]
        assert able.translator is not None or seconds == sorted(seconds)
        assert "".join("".join(w.text.split()) for w in segment.words) == "".join(segment.text.split())
    return "by frames" if able.writes_by_frames else "by attention"


def timestamps(subject: Subject) -> str:
    """Segments cut by timestamp tokens."""
    if not subject.hears:
        return NOT_ASKED
    if subject.family.capabilities.timestamps is None:
        return refusal(lambda: subject.text(timestamps=True))
    subject.text(timestamps=True)
    return YES


def live(subject: Subject) -> str:
    """Live text by spans is that of a recording; the answer is the policy that "auto" means.

    Of translators, the policies by which they commit text behind a recogniser.
    """
    if not subject.hears:
        return _live_behind_a_recogniser(subject.family)
    source, target = subject.pair
    options = DecodingOptions(**OPEN)
    engine = LiveEngine(subject.family, options, activity=Loudness())
    session, samples, text = engine.open([target], source, LiveOptions(policy="span")), talk(), ""
    for begin in range(0, len(samples), 8000):
        session.push(samples[begin : begin + 8000])
    session.finish()
    while not session.finished:
        for event in engine.step([session])[0]:
            assert isinstance(event, LiveText), event
            text += event.committed
    assert text.split() == subject.text().split()
    return policies_of(subject.family)[0]


def _live_behind_a_recogniser(translator: Family) -> str:
    """What is committed is never taken back, and all of it has been when the speech has ended."""
    source, target = next(pair for pair in sorted(translator.pairs()) if pair[0] in LANGUAGES)
    cascade = Cascade(TinyFamily(seed=3), translator)
    options = DecodingOptions(**{**OPEN, "max_tokens": 8})
    able = [policy for policy in policies_of(cascade) if LiveOptions(policy=policy).commits]
    for policy in able:
        engine = LiveEngine(cascade, options, activity=Loudness())
        live = LiveOptions(policy=policy, step_s=0.5)
        if policy == "alignatt":
            live = replace(live, border_words=1)
        session = engine.open([target], source, live)
        last = None
        samples = talk()
        for begin in range(0, len(samples), 8000):
            session.push(samples[begin : begin + 8000])
            if begin + 8000 >= len(samples):
                session.finish()
            while session.due:
                for event in engine.step([session])[0]:
                    assert isinstance(event, LiveText), event
                    last = event
        assert last is not None
        assert last.final
        assert not last.tentative
    return f"{', '.join(able)} (behind a recogniser)"


def guard(subject: Subject) -> str:
    """A guard that believes nothing lets nothing through, and says why."""
    if not subject.hears:
        return NOT_ASKED
    strict = GuardOptions(hopeless_mean_log_probability=-1e-12)
    result = subject.written(guard=strict)
    assert not result.segments
    assert result.dropped
    assert all(segment.dropped for segment in result.dropped)
    return YES


def prompt(subject: Subject) -> str:
    """A prompt is used, or refused."""
    if not subject.hears:
        return NOT_ASKED
    if not subject.family.capabilities.reads_context:
        return refusal(lambda: subject.text(prompt="names"))
    subject.text(prompt="names")
    return "used"


def draft(subject: Subject) -> str:
    """A draft leaves the text as it is; here a model drafts for itself."""
    directory, able = subject.root / "draft", subject.family.capabilities
    of_frames = able.writes_by_frames or able.joint_ctc is not None
    drafter = subject.family.recogniser if isinstance(subject.family, Cascade) else subject.family
    if of_frames or not _attempt(lambda: save(drafter, directory)):
        return refusal(lambda: subject.text(draft=str(directory)))
    drafted: list[str] = []
    if not _attempt(lambda: drafted.append(subject.text(draft=str(directory), num_draft_tokens=2))):
        return REFUSED
    assert drafted == [subject.text()]
    return YES


def unknown_pair(subject: Subject) -> str:
    """A language that nobody knows, and a pair of two that it knows, are refused with those it does know."""
    family = subject.family
    source, target = subject.pair
    options = DecodingOptions(**OPEN)

    def ask(to: str, spoken: str) -> object:
        if subject.hears:
            return heard(family, to, spoken, options)
        return list(translate_texts(family, SENTENCES, [to], spoken, options))

    refusal(lambda: ask("tlh", source))
    refusal(lambda: ask(target, "tlh"))
    pairs = family.pairs()
    sources, targets = {pair[0] for pair in pairs}, {pair[1] for pair in pairs}
    unknown = sorted(set(itertools.product(sources, targets)) - pairs)
    if unknown:
        refusal(lambda: ask(unknown[0][1], unknown[0][0]))
    return REFUSED


def language_spoken(subject: Subject) -> str:
    """How the language is found out that nobody named."""
    family, able = subject.family, subject.family.capabilities
    if not subject.hears:
        return "must be named"
    if len(family.source_languages) == 1:
        return "has one"
    if able.language_from_text:
        return "from its text"
    with torch.inference_mode():
        rows = family.language_log_probs(family.encode(family.features([sound(1.0)])))
    if identify(rows, family.source_languages, None).language != UNDETERMINED:
        return "from speech"
    if any(s == t for s, t in family.pairs()):
        refusal(lambda: heard(family, TRANSCRIBE, None, DecodingOptions(**OPEN)))
    return "must be named"


def text_input(subject: Subject) -> str:
    """Texts are translated, or refused."""
    family = subject.family

    def ask() -> list[Any]:
        able = family.capabilities
        translator = family if able.translator is None else able.translator.family
        pairs, written = sorted(translator.pairs()), {target for _, target in translator.pairs()}
        if translator.capabilities.text_encoder is not None:  # it hears languages that it cannot read
            pairs = [pair for pair in pairs if pair[0] in written]
        source, target = next(pair for pair in pairs if pair[0] != pair[1])
        options = DecodingOptions(max_tokens=8)
        return list(translate_texts(family, ["ab", "b"], [target], source, options))

    if family.capabilities.text_input is None:
        return refusal(lambda: list(translate_texts(family, ["ab"], [subject.pair[1]], subject.pair[0])))
    assert len(ask()) == 2
    return YES


# Demands on models.


def reference(subject: Subject) -> str:
    """What its tokens or logits are compared with, by a test that exists."""
    name, test = BUILDERS[subject.name].reference
    assert (ROOT / test).is_file(), test
    return name


def protocol(subject: Subject) -> str:
    """It has every member of the protocol, and pairs of its own languages."""
    family = subject.family
    assert isinstance(family, Family)
    assert family.pairs()
    assert {source for source, _ in family.pairs()} <= set(family.source_languages)
    assert min(family.max_tokens, family.max_window_s, family.frame_s) > 0
    return YES


def round_trip(subject: Subject) -> str:
    """What is saved is loaded again, and writes the same; a model of graphs refuses to be saved."""
    directory = subject.root / "saved"
    if not _attempt(lambda: save(subject.family, directory)):
        return REFUSED
    assert family_of(directory) == REGISTERED.get(subject.name, family_of(directory))
    again = load(directory, offline=True)
    assert again.name == subject.family.name
    assert again.pairs() == subject.family.pairs()
    # In 8 bits, which some are saved in, weights are rounded: what was loaded is the reference then.
    save(again, subject.root / "again")
    assert subject.text(load(subject.root / "again", offline=True)) == subject.text(again)
    return YES


def engines(subject: Subject) -> str:
    """Each engine writes text or is refused; in 32 bits it is the text of plain torch."""
    family = subject.family
    if subject.family.capabilities.translator is not None:
        return "each half's"
    plain = engine_for(family, "torch").family
    assert subject.text(plain) == subject.text()
    actual = ["torch"]

    def fast() -> None:
        assert subject.text(engine_for(family, "torch-fp32", compare=False).family) == subject.text()

    if _attempt(fast):
        actual.append("torch-fp32, bf16, int8")
    if why_not_family(family) is None:
        actual.append("native")
    return ", ".join(actual)


def pool_frames(subject: Subject) -> str:
    """Averaged frames, where the cross-attention of a decoder alone reads them; else a refusal."""
    able = subject.family.capabilities
    if able.writes_by_frames or able.joint_ctc is not None or able.reads_prefix:
        return refusal(lambda: pooled(subject.family, 2))
    subject.text(pooled(subject.family, 2))
    return YES


def devices(subject: Subject) -> str:
    """Kinds of devices that it computes on."""
    kinds = subject.family.capabilities.devices
    return "cpu" if kinds == ("cpu",) else "any"


def fine_tuning(subject: Subject) -> str:
    """A step of `train` from a saved model, and one of LoRA, which changes nothing else; or a refusal."""
    directory = subject.root / "start"
    if not _attempt(lambda: save(subject.family, directory)):
        return REFUSED
    languages = tuple(tag for tag in ("en", "de") if (tag, tag) in subject.family.pairs()) or ("en",)
    data = make_tones(subject.root / "data", languages)

    def recipe(**changes: Any) -> Any:
        return fine_tuning_recipe(data, directory, 1, languages=languages, **changes)

    if not _attempt(lambda: prepare_model(recipe(), subject.root, [])):
        recipe_name = BUILDERS[subject.name].recipe
        return f"recipe {recipe_name}" if recipe_name else REFUSED
    before = load(directory, offline=True)
    assert isinstance(before, torch.nn.Module)
    for name, changes in (("whole", {}), ("lora", {"lora": {"modules": ("encoder.*",), "rank": 2}})):
        folder = subject.root / name
        run(recipe(bits=32, **changes), folder, report=lambda line: None)
        after: Any = load(folder / "model", offline=True)
        weights = {n: w for n, w in before.state_dict().items() if w.is_floating_point()}
        changed = {
            n for n, w in after.state_dict().items() if n in weights and not torch.equal(w, weights[n])
        }
        assert changed
        assert name == "whole" or all(n.startswith("encoder.") for n in changed)
    return "whole, LoRA"


DECODING: Mapping[str, Callable[[Subject], str]] = {
    "batch equals single": batch_equals_single,
    "long recording": long_recording,
    "beam": beam,
    "times of words": times_of_words,
    "timestamps": timestamps,
    "live by": live,
    "prompt": prompt,
    "draft": draft,
    "guard": guard,
    "unknown pair": unknown_pair,
}
MODELS: Mapping[str, Callable[[Subject], str]] = {
    "protocol": protocol,
    "equal to": reference,
    "save and load": round_trip,
    "language spoken": language_spoken,
    "text input": text_input,
    "engines": engines,
    "pool frames": pool_frames,
    "devices": devices,
    "fine-tuning": fine_tuning,
}
"""Demands by the name of their column."""
TABLES: Mapping[str, Mapping[str, Callable[[Subject], str]]] = {
    "families_decoding": DECODING,
    "families_models": MODELS,
}
"""Files under docs/results, and the demands in them."""


def write_rows(directory: Path) -> None:
    """Write the rows of the tables."""
    rows: dict[str, list[dict[str, str]]] = {name: [] for name in TABLES}
    for family in BUILDERS:
        with tempfile.TemporaryDirectory() as workdir:
            subject = make_subject(family, Path(workdir))
            for name, demands in TABLES.items():
                answers = {column: demand(subject) for column, demand in demands.items()}
                rows[name].append({"family": family, **answers})
        print(family, file=sys.stderr)
    for name, own in rows.items():
        text = json.dumps({"rows": own}, indent=1, ensure_ascii=False)
        (directory / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    from tests import shared

    with tempfile.TemporaryDirectory() as workdir:
        shared.folder = Path(workdir)
        write_rows(Path(sys.argv[1]))
