"""Models by name, without torch: folders here, and the public checkpoints that this package loads.

Of each of these it says what it does, how large it is, and under which licence.

Sizes are about those of the weights that `models download` fetches; licences are those of the weights. Both were
compared with pages of the hub for large-v2, large-v3, turbo, distil-large-v3 and, the licence alone, SeamlessM4T v2;
the others are from general knowledge. Sizes of translators of text are those of their shapes in 32 bits, and those of
speech LLMs in bfloat16. Opus-MT is a
thousand models of a pair or some, each with a licence of its own (mostly Apache-2.0 or CC BY 4.0), and not listed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Literal

Task = Literal["transcribe", "to-english", "with-english", "any-to-any", "text"]
"""Transcription alone; with translation into English; into English and from it; into any of its languages from any; the
same of text, without hearing."""
ENGLISH = "en"
BUNDLED = "bundled"
"""Name of the model that is taken where none is named."""
SHIPPED = (BUNDLED, "bundled-streaming")
"""Names of the models that come with the package."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A published model.

    Attributes:
        alias: short name, which `--model` takes.
        id: name on the Hugging Face hub.
        family: family that loads it here.
        task: task that it was trained for.
        languages: rule for its languages: "whisper" (99), "whisper-v3" (with Cantonese), "english", "european" (25),
            "seamless", that of a speech LLM, or of a translator of text.
        size_gb: gigabytes of the download, about.
        licence: licence of the weights.
        commercial: whether the licence allows commercial use.
        extra: extra of this package that it needs; empty for none.
    """

    alias: str
    id: str
    family: str
    task: Task
    languages: Literal[
        "whisper",
        "whisper-v3",
        "english",
        "european",
        "seamless",
        "m2m-100",
        "nllb-200",
        "mbart-50",
        "madlad-400",
        "voxtral",
        "voxtral-realtime",
        "english-french",
        "granite",
        "qwen3-asr",
        "language-model",
    ]
    size_gb: float
    licence: str
    commercial: bool = True
    extra: str = ""

    @property
    def sources(self) -> frozenset[str]:
        """BCP-47 tags of the languages understood."""
        return _spoken(self.languages)

    @property
    def spoken(self) -> str:
        """The languages understood, in words."""
        # Published counts of the last two differ from what is known here.
        counts = {
            "english": "English",
            "seamless": "about 100 languages",
            "madlad-400": "about 400 languages",
            "language-model": "languages as its card says",
        }
        return counts.get(self.languages, f"{len(self.sources)} languages")

    @property
    def targets(self) -> frozenset[str]:
        """BCP-47 tags of the languages that it translates into; none of a model that only transcribes."""
        if self.task in ("any-to-any", "with-english", "text"):
            return _written(self.languages)
        return frozenset({ENGLISH} if self.task == "to-english" else ())

    def does(self, source: str | None, target: str | None) -> bool:
        """Whether it writes `target` for speech in `source`.

        Args:
            source: BCP-47 tag; None for any.
            target: BCP-47 tag; None for the language spoken.
        """
        if self.task == "text":
            return False
        if source is not None and source not in self.sources:
            return False
        if target is None or target == source:
            return target is None or target in self.sources
        if self.task == "with-english" and ENGLISH not in (source, target):
            return False
        return target in self.targets

    @property
    def text(self) -> str:
        """One line: task, languages, size and licence."""
        does = {
            "transcribe": "transcribes {}",
            "to-english": "transcribes {} and translates them into English",
            "with-english": "transcribes {} and translates them into English and from it",
            "any-to-any": "translates {} into each other",
            "text": "translates text of {} into each other",
        }[self.task]
        use = "" if self.commercial else ", no commercial use"
        return f"{does.format(self.spoken)}; about {self.size_gb:g} GB; {self.licence}{use}"


CATALOGUE = (
    Checkpoint(
        alias="whisper-tiny",
        id="openai/whisper-tiny",
        family="whisper",
        task="to-english",
        languages="whisper",
        size_gb=0.15,
        licence="Apache-2.0",
    ),
    Checkpoint(
        alias="whisper-base",
        id="openai/whisper-base",
        family="whisper",
        task="to-english",
        languages="whisper",
        size_gb=0.29,
        licence="Apache-2.0",
    ),
    Checkpoint(
        alias="whisper-small",
        id="openai/whisper-small",
        family="whisper",
        task="to-english",
        languages="whisper",
        size_gb=0.97,
        licence="Apache-2.0",
    ),
    Checkpoint(
        alias="whisper-medium",
        id="openai/whisper-medium",
        family="whisper",
        task="to-english",
        languages="whisper",
        size_gb=3.1,
        licence="Apache-2.0",
    ),
    Checkpoint(
        alias="whisper-large-v2",
        id="openai/whisper-large-v2",
        family="whisper",
        task="to-english",
        languages="whisper",
        size_gb=6.2,
        licence="Apache-2.0",
    ),
    Checkpoint(
        alias="whisper-large-v3",
        id="openai/whisper-large-v3",
        family="whisper",
        task="to-english",
        languages="whisper-v3",
        size_gb=3.1,
        licence="Apache-2.0",
    ),
    Checkpoint(
        alias="whisper-large-v3-turbo",
        id="openai/whisper-large-v3-turbo",
        family="whisper",
        task="transcribe",
        languages="whisper-v3",
        size_gb=1.6,
        licence="MIT",
    ),
    Checkpoint(
        alias="distil-large-v3",
        id="distil-whisper/distil-large-v3",
        family="whisper",
        task="transcribe",
        languages="english",
        size_gb=1.5,
        licence="MIT",
    ),
    Checkpoint(
        alias="moonshine-tiny",
        id="UsefulSensors/moonshine-tiny",
        family="moonshine",
        task="transcribe",
        languages="english",
        size_gb=0.11,
        licence="MIT",
    ),
    Checkpoint(
        alias="moonshine-base",
        id="UsefulSensors/moonshine-base",
        family="moonshine",
        task="transcribe",
        languages="english",
        size_gb=0.25,
        licence="MIT",
    ),
    Checkpoint(
        alias="moonshine-streaming-tiny",
        id="UsefulSensors/moonshine-streaming-tiny",
        family="moonshine_streaming",
        task="transcribe",
        languages="english",
        size_gb=0.18,
        licence="MIT",
    ),
    Checkpoint(
        alias="kyutai-stt-1b",
        id="kyutai/stt-1b-en_fr-trfs",
        family="kyutai_speech_to_text",
        task="transcribe",
        languages="english-french",
        size_gb=2.3,
        licence="CC BY 4.0",
    ),
    Checkpoint(
        alias="kyutai-stt-2.6b",
        id="kyutai/stt-2.6b-en-trfs",
        family="kyutai_speech_to_text",
        task="transcribe",
        languages="english",
        size_gb=5.6,
        licence="CC BY 4.0",
    ),
    Checkpoint(
        alias="parakeet-tdt-v3",
        id="nvidia/parakeet-tdt-0.6b-v3",
        family="parakeet_tdt",
        task="transcribe",
        languages="european",
        size_gb=2.5,
        licence="CC BY 4.0",
    ),
    Checkpoint(
        alias="canary-1b-v2",
        id="nvidia/canary-1b-v2",
        family="canary",
        task="with-english",
        languages="european",
        size_gb=3.9,
        licence="CC BY 4.0",
    ),
    Checkpoint(
        alias="seamless-m4t-medium",
        id="facebook/hf-seamless-m4t-medium",
        family="seamless_m4t",
        task="any-to-any",
        languages="seamless",
        size_gb=4.8,
        licence="CC BY-NC 4.0",
        commercial=False,
        extra="seamless",
    ),
    Checkpoint(
        alias="seamless-m4t-v2-large",
        id="facebook/seamless-m4t-v2-large",
        family="seamless_m4t_v2",
        task="any-to-any",
        languages="seamless",
        size_gb=9.2,
        licence="CC BY-NC 4.0",
        commercial=False,
        extra="seamless",
    ),
    Checkpoint(
        alias="voxtral-mini",
        id="mistralai/Voxtral-Mini-3B-2507",
        family="voxtral",
        task="any-to-any",
        languages="voxtral",
        size_gb=9.4,
        licence="Apache-2.0",
    ),
    Checkpoint(
        alias="voxtral-small",
        id="mistralai/Voxtral-Small-24B-2507",
        family="voxtral",
        task="any-to-any",
        languages="voxtral",
        size_gb=48.5,
        licence="Apache-2.0",
    ),
    Checkpoint(
        alias="voxtral-realtime",
        id="mistralai/Voxtral-Mini-4B-Realtime-2602",
        family="voxtral_realtime",
        task="transcribe",
        languages="voxtral-realtime",
        size_gb=8.9,
        licence="Apache-2.0",
    ),
    Checkpoint(
        alias="granite-speech-2b",
        id="ibm-granite/granite-speech-3.3-2b",
        family="granite_speech",
        task="with-english",
        languages="granite",
        size_gb=6,
        licence="Apache-2.0",
    ),
    Checkpoint(
        alias="granite-speech-8b",
        id="ibm-granite/granite-speech-3.3-8b",
        family="granite_speech",
        task="with-english",
        languages="granite",
        size_gb=17.3,
        licence="Apache-2.0",
    ),
    Checkpoint(
        alias="qwen3-asr-0.6b",
        id="Qwen/Qwen3-ASR-0.6B-hf",
        family="qwen3_asr",
        task="transcribe",
        languages="qwen3-asr",
        size_gb=1.6,
        licence="Apache-2.0",
    ),
    Checkpoint(
        alias="qwen3-asr-1.7b",
        id="Qwen/Qwen3-ASR-1.7B-hf",
        family="qwen3_asr",
        task="transcribe",
        languages="qwen3-asr",
        size_gb=4.1,
        licence="Apache-2.0",
    ),
    Checkpoint(
        alias="m2m100-418m",
        id="facebook/m2m100_418M",
        family="m2m_100",
        task="text",
        languages="m2m-100",
        size_gb=1.9,
        licence="MIT",
        extra="translation",
    ),
    Checkpoint(
        alias="nllb-200-600m",
        id="facebook/nllb-200-distilled-600M",
        family="m2m_100",
        task="text",
        languages="nllb-200",
        size_gb=2.5,
        licence="CC BY-NC 4.0",
        commercial=False,
        extra="translation",
    ),
    Checkpoint(
        alias="mbart-50",
        id="facebook/mbart-large-50-many-to-many-mmt",
        family="mbart",
        task="text",
        languages="mbart-50",
        size_gb=2.4,
        licence="none stated with the weights",
        extra="translation",
    ),
    Checkpoint(
        alias="madlad400-3b",
        id="google/madlad400-3b-mt",
        family="t5",
        task="text",
        languages="madlad-400",
        size_gb=11.8,
        licence="Apache-2.0",
        extra="translation",
    ),
    Checkpoint(
        alias="qwen3-4b-instruct",
        id="Qwen/Qwen3-4B-Instruct-2507",
        family="qwen3",
        task="text",
        languages="language-model",
        size_gb=8.0,
        licence="Apache-2.0",
        extra="translation",
    ),
)
"""Checkpoints by family, from small to large."""
_PREFERRED = (
    "whisper-large-v3",
    "whisper-large-v3-turbo",
    "canary-1b-v2",
    "seamless-m4t-v2-large",
    "whisper-small",
    "distil-large-v3",
)
"""Checkpoints to name first where several would do."""
_RECOGNISER = "whisper-large-v3-turbo"
"""The first half of a cascade that is recommended."""
_WHISPER = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml "
    "cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am "
    "yi lo uz fo ht ps tk nn mt sa lb my bo fil mg as tt haw ln ha ba jv su"
)
_EUROPEAN = "bg hr cs da nl en et fi fr de el hu it lv lt mt pl pt ro sk sl es sv ru uk"
_SPEECH_LLM = {
    "voxtral": "en es fr pt hi de nl it",
    "voxtral-realtime": "en zh hi es ar fr pt ru de ja ko it nl",
    "english-french": "en fr",
    "granite": "en fr de es pt",
    "qwen3-asr": (
        "ar cs da de el en es fa fi fil fr hi hu id it ja ko mk ms nl pl pt ro ru sv th tr vi yue zh"
    ),
}
_GRANITE_WRITTEN = "en fr de es pt it ja zh"
_SEAMLESS = (
    "af am ar ary arz as az be bn bs bg ca ceb cs ckb zh zh-Hant cy da de el en et eu fi fr fuv om ga gl gu he hi hr "
    "hu hy ig id is it jv ja kn ka kk mn km ky ko lo lt lg luo lv mai ml mr mk mt mni my nl nn nb ne ny or pa ps fa pl "
    "pt ro ru sk sl sn sd so es sr sv sw ta te tg fil th tr uk ur uz vi yo yue ms zu"
)
_SPOKEN_ONLY = "ast kam kea lb oc xh"
"""Languages that SeamlessM4T hears and does not write (arXiv 2312.05187)."""
_M2M_100 = (
    "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht hu hy "
    "id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no nso oc or pa pl ps pt ro ru "
    "sd si sk sl so sq sr ss su sv sw ta th fil tn tr uk ur uz vi wo xh yi yo zh zu"
)
_NLLB = (
    "ace-Arab ace acm acq aeb af ajp aka twi am apc ar ars ary arz as ast awa ay azb az ba bm ban be bem bn bho "
    "bjn-Arab bjn bo bs bug bg ca ceb cs cjk ckb crh cy da de din dyu dz el en eo et eu ee fo fa fj fi fon fr fur fuv "
    "gd ga gl gn gu ht ha he hi hne hr hu hy ig ilo id is it jv ja kab kac kam kn ks ks-Deva ka kr-Arab kr kk kbp kea "
    "km ki rw ky kmb kg ko ku lo lv lij li ln lt lmo ltg lb lua lg luo lus mag mai ml mr min mk mg mt mni mn mos mi ms "
    "my nl nn nb ne nso nus ny oc om or pag pa pap pl pt fa-AF ps quy ro rn ru sg sa sat scn shn si sk sl sm sn sd so "
    "st es sq sc sr ss su sv sw szl ta tt te tg fil th ti taq taq-Tfng tpi tn ts tk tum tr tzm ug uk umb ur uz vec vi "
    "war wo xh yi yo yue zh zh-Hant zu"
)
LANGUAGES_OF_TEXT = tuple(_M2M_100.split())
"""Languages of a language model that does not state its own."""
_MBART_50 = (
    "ar cs de en es et fi fr gu hi it ja kk ko lt lv my ne nl ro ru si tr vi zh af az bn fa he hr id ka km mk ml mn "
    "mr pl ps pt sv sw ta te th fil uk ur xh gl sl"
)
_TEXT = {
    "m2m-100": _M2M_100,
    "nllb-200": _NLLB,
    "mbart-50": _MBART_50,
    "madlad-400": _M2M_100,
    "language-model": _M2M_100,
}
"""Rules of translators of text to what they read and write; of MADLAD-400's some 400 those that M2M-100 has too, which
stand for those of a language model."""


def folders_with_config() -> list[Path]:
    """The working directory and the folders in it, two levels deep, as far as they hold a config.json, in order.

    Such a folder may hold a model; whose file it is, nothing has looked at.
    """
    here = Path()
    patterns = ("config.json", "*/config.json", "*/*/config.json")
    return sorted(config.parent for pattern in patterns for config in here.glob(pattern))


def find_checkpoint(name: str) -> Checkpoint | None:
    """The entry of an alias, or of a name on the hub; None for others."""
    return next((one for one in CATALOGUE if name in (one.alias, one.id)), None)


def aliases_like(name: str) -> list[str]:
    """Up to three names of models that have `name` in them, as "whisper-base" has "base", or else are spelled alike."""
    names = [*SHIPPED, *(one.alias for one in CATALOGUE)]
    return [one for one in names if name in one][:3] or get_close_matches(name, names, 3)


def all_languages() -> frozenset[str]:
    """BCP-47 tags of all languages that any of them knows."""
    return frozenset().union(*(one.sources | one.targets for one in CATALOGUE))


def fitting(source: str | None, targets: Sequence[str | None], most: int = 3) -> list[Checkpoint]:
    """Checkpoints that do all that is wanted, the most recommendable first.

    Args:
        source: BCP-47 tag of the language spoken; None for any.
        targets: BCP-47 tags of the languages wanted; None for the language spoken.
        most: most checkpoints that are named.
    """
    able = [one for one in CATALOGUE if all(one.does(source, target) for target in targets)]

    def rank(one: Checkpoint) -> tuple[int, float]:
        known = one.alias in _PREFERRED
        return _PREFERRED.index(one.alias) if known else len(_PREFERRED), one.size_gb

    return sorted(able, key=rank)[:most]


def fitting_cascade(
    source: str | None, targets: Sequence[str | None]
) -> tuple[Checkpoint, Checkpoint] | None:
    """A recogniser and a translator of text that do together what is wanted; those for commerce before others.

    Args:
        source: BCP-47 tag of the language spoken; None for any.
        targets: BCP-47 tags of the languages wanted; None for the language spoken.

    Returns:
        None where no two do, or where nothing is to be translated.
    """
    wanted = [target for target in targets if target not in (None, source)]
    recogniser = next(one for one in CATALOGUE if one.alias == _RECOGNISER)
    able = [
        one
        for one in CATALOGUE
        if one.task == "text"
        and all(target in one.targets for target in wanted)
        and (source is None or source in one.sources & recogniser.sources)
    ]
    able.sort(key=lambda one: not one.commercial)
    return (recogniser, able[0]) if wanted and able else None


@cache
def _spoken(rule: str) -> frozenset[str]:
    if rule == "english":
        return frozenset({ENGLISH})
    if rule == "european":
        return frozenset(_EUROPEAN.split())
    if rule in _TEXT or rule in _SPEECH_LLM:
        return frozenset({**_TEXT, **_SPEECH_LLM}[rule].split())
    if rule == "seamless":
        return frozenset([*_SEAMLESS.split(), *_SPOKEN_ONLY.split()])
    return frozenset(_WHISPER.split()) | ({"yue"} if rule == "whisper-v3" else frozenset())


@cache
def _written(rule: str) -> frozenset[str]:
    if rule == "granite":
        return frozenset(_GRANITE_WRITTEN.split())
    if rule in _TEXT or rule in ("european", "voxtral"):
        return _spoken(rule)
    return frozenset(_SEAMLESS.split() if rule == "seamless" else ())
