"""An option that a model cannot serve is an error that names it, the model, and which models can."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from sprachbund.decoding.options import DecodingOptions, check_options
from sprachbund.decoding.pipeline import LongForm
from sprachbund.decoding.search import search
from sprachbund.errors import SprachbundError
from sprachbund.models.base import JointCtc, Target
from sprachbund.nn.transducer import Transducer, TransducerShape
from tests.decoding.test_translate import recording
from tests.decoding.tiny_family import TinyFamily, random_memory

ONLY_ATTENTION = [
    ({"draft": "token-map"}, r"a draft \(token-map\)"),
    ({"num_draft_tokens": 3}, r"num_draft_tokens \(3\)"),
    ({"word_timestamps": True}, "words with times"),
    ({"min_tokens": 2}, r"min_tokens \(2\)"),
    ({"length_penalty": 0.6}, r"length_penalty \(0.6\)"),
    ({"prompt": "Hallo"}, "a prompt"),
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
        SprachbundError, match=f"the model tiny writes {how}, .* {what}; leave it out, .* {NAMES}"
    ):
        check_options(family, DecodingOptions(**options))


CASES = [
    (
        {"alignment": None},
        {"word_timestamps": True},
        f"the model tiny .* leave word_timestamps out, .* {NAMES}",
    ),
    ({"timestamps": None}, {"timestamps": True}, "the model tiny writes no timestamps; .* a whisper model"),
    (
        {"joint_ctc": JointCtc(head=TinyFamily(), weight=0.3)},  # type: ignore[arg-type]
        {"draft": "token-map"},
        f"the model tiny is searched with CTC, .* a draft .* {NAMES}",
    ),
]


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
