"""An option that a model cannot serve is an error that names it, the model, and which models can."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sprachbund.decoding.long_form import LongForm
from sprachbund.decoding.options import DecodingOptions, GuardOptions, check_options
from sprachbund.decoding.recordings import check_targets, options_with_drafts
from sprachbund.decoding.search import search
from sprachbund.decoding.texts import translate_texts
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.hypotheses import BatchDecoder
from sprachbund.models.base import JointCtc, Target, Translator
from sprachbund.models.calibration import Calibration, Domain
from sprachbund.models.cascade import Cascade
from sprachbund.nn.transducer import Transducer, TransducerShape
from sprachbund.streaming.engine import LiveEngine
from tests.decoding.test_cascade import Reading
from tests.decoding.test_translate import recording
from tests.decoding.tiny_family import TinyFamily, random_memory

ONLY_ATTENTION = [
    ({"draft": "token-map"}, "draft is 'token-map'"),
    ({"num_draft_tokens": 3}, "num_draft_tokens is 3"),
    ({"word_timestamps": True}, "word_timestamps is True"),
    ({"min_tokens": 2}, "min_tokens is 2"),
    ({"length_penalty": 0.6}, "length_penalty is 0.6"),
]
NAMES = "such as whisper, conformer or seamless"


def able_to(**capabilities: Any) -> TinyFamily:
    family = TinyFamily()
    family.capabilities = replace(family.capabilities, **capabilities)
    return family


@pytest.mark.parametrize(("options", "what"), ONLY_ATTENTION)
@pytest.mark.parametrize(("part", "how"), [("transducer", "frame by frame"), ("ctc", "by CTC")])
def test_of_attention_decoders(options: dict[str, Any], what: str, part: str, how: str) -> None:
    writer = (
        Transducer(TransducerShape(vocabulary_size=4, encoder_width=4))
        if part == "transducer"
        else TinyFamily()
    )
    family = able_to(**{part: writer}, alignment=None)
    check_options(family, DecodingOptions(beam_size=3, max_tokens=5))
    with pytest.raises(
        SprachbundError, match=f"{what}, and the model tiny writes {how}, .*; leave it out, .* {NAMES}"
    ):
        check_options(family, DecodingOptions(**options))


CASES = [
    (
        {"reads_context": False},
        {"prompt": "Ada"},
        "the model tiny has no room for a prompt; leave it out, or take a whisper or qwen3_asr model",
    ),
    (
        {"alignment": None},
        {"word_timestamps": True},
        f"word_timestamps is True, and the model tiny .*; leave it out, .* {NAMES}",
    ),
    (
        {"timestamps": None},
        {"timestamps": True},
        "timestamps is True, .* tiny writes none; .* a whisper model",
    ),
    (
        {"joint_ctc": JointCtc(head=TinyFamily(), weight=0.3)},  # type: ignore[arg-type]
        {"draft": "token-map"},
        f"draft is .*the model tiny is searched with CTC, .* {NAMES}",
    ),
    (
        {"joint_ctc": JointCtc(head=TinyFamily(), weight=0.3)},  # type: ignore[arg-type]
        {"temperature": (0.5,)},
        f"temperature is .*the model tiny is searched with CTC, .* {NAMES}",
    ),
    (
        {"transducer": Transducer(TransducerShape(vocabulary_size=4, encoder_width=4, durations=(0, 1)))},
        {"beam_size": 2},
        f"beam_size is 2, and the model tiny writes tokens with durations, .*; set it to 1, .* {NAMES}",
    ),
    (
        {"frame_decoder": TinyFamily()},
        {"beam_size": 2},
        f"beam_size is 2, and the model tiny writes one token for every frame, .*; set it to 1, .* {NAMES}",
    ),
    (
        {"ctc": TinyFamily()},
        {"beam_size": 2, "word_timestamps": True},
        f"beam_size is 2, .* texts of tiny .* no times; set it to 1, .* {NAMES}",
    ),
    (
        {},
        {"max_symbols": 2},
        "max_symbols is 2, and the model tiny has no transducer, .* leave it out, .* such as parakeet_tdt",
    ),
    ({}, {"hot_words": ("Ada",)}, f"the model tiny cannot spell words, .* leave them out, .* {NAMES}"),
    (
        {},
        {"glossary": "Hund = hound"},
        "the model tiny takes no glossary; leave it out, .* such as --then Qwen",
    ),
]


ASKED_ALONE = [
    ({"num_draft_tokens": 2, "draft": "none"}, "num_draft_tokens is 2, and draft is none; name a draft"),
    ({"num_draft_tokens": 2}, "num_draft_tokens is 2, and the model tiny has no draft of its own; name a"),
    ({"length_penalty": 0.6}, "length_penalty is 0.6, .*; set beam_size to 8, for example, or leave"),
    ({"translation_weight": 0.5}, "translation_weight is 0.5, and the model tiny is no cascade, .*--then"),
    ({"hot_words_weight": 3.0}, "hot_words_weight is 3.0, and there are no hot_words; name some, or leave"),
    ({"sampling_seed": 4}, "sampling_seed is 4, .*; set temperature to 0.5, for example, or leave"),
    (
        {"guard": GuardOptions(enabled=False, max_out_of_domain=0.3)},
        "max_out_of_domain is 0.3, and the guard, .* is off; leave one of them out",
    ),
]


@pytest.mark.parametrize(("options", "message"), ASKED_ALONE)
def test_options_that_qualify_what_was_not_asked_for(options: dict[str, Any], message: str) -> None:
    family, asked = TinyFamily(), DecodingOptions(**options)
    family.calibration = Calibration(domain=Domain(threshold=0.8, bias=0.0, signals={}, encoder=[0.0] * 16))
    with pytest.raises(SprachbundError, match=message) as raised:
        LongForm(family, recording((0.5, 1.0)), ["de"], "en", asked, sample_rate=16_000)
    assert "\n" not in str(raised.value)
    with pytest.raises(SprachbundError, match=message):
        BatchDecoder(family, asked)
    with pytest.raises(SprachbundError, match=message):
        LiveEngine(family, asked)


def test_options_that_qualify_what_was_asked_for() -> None:
    family = TinyFamily()
    check_options(family, DecodingOptions(num_draft_tokens=2, draft="map.json"))
    check_options(family, DecodingOptions(length_penalty=0.6, beam_size=2))
    check_options(family, DecodingOptions(sampling_seed=4, temperature=(0.0, 0.5)))
    check_options(family, DecodingOptions(guard=GuardOptions(enabled=False)))
    family.drafts = {"parasite": Path("draft.safetensors")}
    check_options(family, DecodingOptions(num_draft_tokens=2))


def test_a_draft_that_cannot_be_loaded_takes_its_number_of_tokens_along(tmp_path: Path) -> None:
    """The number was asked of a draft that there is; that it cannot be used is a note, and no error."""
    family = TinyFamily()
    family.drafts = {"parasite": tmp_path / "none.safetensors"}
    options, drafts = options_with_drafts(family, DecodingOptions(num_draft_tokens=2))
    assert drafts.own is None
    assert len(drafts.faults) == 1
    check_options(family, options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"translator_draft": "small"}, "translator_draft is 'small', which is for the translator"),
        ({"translation_weight": 0.5, "nbest": 2, "beam_size": 2}, "translation_weight is 0.5, which is for"),
        ({"glossary": "Hund = hound"}, "glossary is 'Hund = hound', which is for the translator"),
    ],
)
def test_options_of_a_translator_are_refused_where_nothing_is_translated(
    changes: dict[str, Any], message: str
) -> None:
    translator = Reading()
    translator.capabilities = replace(translator.capabilities, follows_requests=True)
    family, asked = Cascade(TinyFamily(), translator), DecodingOptions(**changes)
    for targets, source in ((["transcribe"], None), (["transcribe"], "de"), (["de"], "de")):
        with pytest.raises(SprachbundError, match=message):
            check_targets(family, targets, source, asked)
        check_targets(family, targets, source, DecodingOptions(nbest=2, beam_size=2))
    check_targets(family, ["transcribe", "es"], None, asked)
    check_targets(family, ["es"], "de", asked)


def test_recordings_and_live_text_refuse_a_glossary_where_nothing_is_translated() -> None:
    translator = Reading()
    translator.capabilities = replace(translator.capabilities, follows_requests=True)
    family, asked = Cascade(TinyFamily(), translator), DecodingOptions(glossary="Hund = hound")
    with pytest.raises(SprachbundError, match="speech is only transcribed; leave it out, or name a language"):
        LongForm(family, recording(), ["transcribe"], "de", asked, sample_rate=16_000)
    engine = LiveEngine(family)
    with pytest.raises(SprachbundError, match="speech is only transcribed; leave it out, or name a language"):
        engine.open(["transcribe"], "de", glossary="Hund = hound")
    engine.open(["es"], "de", glossary="Hund = hound")


def test_a_weight_of_translations_is_of_several_transcripts() -> None:
    translator = Translator(family=TinyFamily(), languages={})
    cascade = able_to(translator=translator)
    with pytest.raises(
        SprachbundError, match=r"translation_weight is 0.5, and nbest is 1, .*set nbest and beam"
    ):
        check_options(cascade, DecodingOptions(translation_weight=0.5))
    check_options(cascade, DecodingOptions(translation_weight=0.5, nbest=2, beam_size=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "Ada"}, "a text is translated without a prompt"),
        ({"nbest": 2, "beam_size": 2}, "nbest is 2, and a text is translated once"),
        ({"word_timestamps": True}, "words of a text have no times"),
        ({"sampling_seed": 4}, "sampling_seed is 4"),
    ],
)
def test_of_texts(options: dict[str, Any], message: str) -> None:
    reader = able_to(text_input=TinyFamily())
    for family in (
        reader,
        able_to(translator=Translator(family=reader, languages={}), text_input=TinyFamily()),
    ):
        with pytest.raises(SprachbundError, match=message):
            translate_texts(family, ["one"], ["de"], "en", DecodingOptions(**options))


@pytest.mark.parametrize(("capabilities", "options", "message"), CASES)
def test_before_any_work(capabilities: dict[str, Any], options: dict[str, Any], message: str) -> None:
    family, asked = able_to(**capabilities), DecodingOptions(**options)
    with pytest.raises(SprachbundError, match=message):
        search(family, random_memory([5]), [[Target(language="de")]], asked)
    with pytest.raises(SprachbundError, match=message):
        LongForm(family, recording((0.5, 1.0)), ["de"], "en", asked, sample_rate=16_000)


def test_options_are_had_without_torch() -> None:
    code = "import sys, sprachbund.decoding.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("timestamps", ["auto", False])
def test_timestamps_go_as_far_as_the_model_does(timestamps: Any) -> None:
    check_options(able_to(timestamps=None), DecodingOptions(timestamps=timestamps))
    check_options(TinyFamily(num_times=10), DecodingOptions(timestamps=True))


def test_timestamps_are_yes_no_or_auto() -> None:
    with pytest.raises(SprachbundError, match="timestamps is 'never'; choose one of True, False, auto"):
        DecodingOptions(timestamps="never")  # type: ignore[arg-type]
