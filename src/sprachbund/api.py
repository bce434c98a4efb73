"""The Python interface: load a model, translate a recording.

model = sprachbund.load()
print(model.translate("talk.wav", to="de").text)
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import overload

import torch

from sprachbund.audio.load import AudioInput, AudioSource
from sprachbund.audio.spans import VoiceActivity
from sprachbund.decoding.long_form import LongForm, translate, translate_file
from sprachbund.decoding.options import TRANSCRIBE, DecodingOptions
from sprachbund.decoding.result import Translation
from sprachbund.engines.choice import Engine, check_choice, engine_for, pooled
from sprachbund.engines.options import NATIVE, EngineChoice, EngineWarning
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, use_real_length, use_tier
from sprachbund.models.card import Card
from sprachbund.models.catalogue import BUNDLED
from sprachbund.models.io import load as load_family
from sprachbund.models.io import locate
from sprachbund.models.licence import Licence, licences
from sprachbund.streaming.engine import LiveEngine
from sprachbund.streaming.live import Listener
from sprachbund.streaming.options import LiveOptions
from sprachbund.util.devices import CPU


class Model:
    """A loaded model and what can be done with it; may be used for any number of recordings.

    Attributes:
        name: name it was loaded by: "bundled", a path or a Hugging Face id.
        card: description of the model; for a model without a card, its name and languages.
        family: the underlying model, with the interface of `sprachbund.models.base.Family`.
        engine: engine that computes it (`engine.name`) and the reason for it (`engine.why`); None for a model not
            loaded by `load`.
        licences: licences of its weights, those of both halves of a cascade; empty for a model that was not loaded by
            `load`.
    """

    def __init__(
        self,
        family: Family,
        *,
        name: str,
        card: Card | None = None,
        engine: Engine | None = None,
        licences: Sequence[Licence] = (),
    ) -> None:
        self.family = family
        self.engine = engine
        self.name = name
        self.licences = tuple(licences)
        self.card = card or _card_from(family, name)

    def __repr__(self) -> str:
        return f"<sprachbund.Model {self.name}: {self.family.name}, {len(self.pairs)} pairs>"

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """All (source, target) pairs that the model knows, sorted; (x, x) is transcription of x."""
        return tuple(sorted(self.family.pairs()))

    @cached_property
    def _activity(self) -> VoiceActivity:
        return VoiceActivity()

    @overload
    def translate(
        self,
        audio: AudioInput | AudioSource,
        to: str,
        *,
        source: str | None = None,
        languages: Sequence[str] | None = None,
        options: DecodingOptions | None = None,
        sample_rate: int | None = None,
    ) -> Translation: ...

    @overload
    def translate(
        self,
        audio: AudioInput | AudioSource,
        to: list[str] | tuple[str, ...],
        *,
        source: str | None = None,
        languages: Sequence[str] | None = None,
        options: DecodingOptions | None = None,
        sample_rate: int | None = None,
    ) -> dict[str, Translation]: ...

    def translate(
        self,
        audio: AudioInput | AudioSource,
        to: str | list[str] | tuple[str, ...],
        *,
        source: str | None = None,
        languages: Sequence[str] | None = None,
        options: DecodingOptions | None = None,
        sample_rate: int | None = None,
    ) -> Translation | dict[str, Translation]:
        """Translate a whole recording.

        Args:
            audio: path, binary file object, or samples (N,) or (N, channels) with `sample_rate`; or the
                result of `sprachbund.audio.load.open_audio`, which also opens untrusted recordings (`untrusted`).
            to: language wanted, as a tag or a name ("de", "German"); or several, which share the encoder's
                work.
            source: language spoken; None identifies it.
            languages: languages that may be spoken, one or several; None allows all of the model's.
            options: decoding options; `languages` replaces its `allowed_languages`.
            sample_rate: sample rate of samples, in Hz; files state their own.

        Returns:
            A `Translation`; for several languages a dictionary of them by the model's tags.

        Raises:
            SprachbundError: a language or pair the model does not know, languages that are declared twice, or audio
                that cannot be read.
        """
        targets = _targets(to)
        translations = translate(
            self.family,
            audio,
            targets,
            source,
            _declared(options, languages),
            sample_rate=sample_rate,
            activity=self._activity,
        )
        return next(iter(translations.values())) if isinstance(to, str) else translations

    def transcribe(
        self,
        audio: AudioInput | AudioSource,
        *,
        source: str | None = None,
        languages: Sequence[str] | None = None,
        options: DecodingOptions | None = None,
        sample_rate: int | None = None,
    ) -> Translation:
        """Transcribe a whole recording, in the language spoken; arguments and errors as for `translate`."""
        return self.translate(
            audio, TRANSCRIBE, source=source, languages=languages, options=options, sample_rate=sample_rate
        )

    def stream(
        self,
        audio: AudioInput | AudioSource,
        to: str | Sequence[str],
        *,
        source: str | None = None,
        languages: Sequence[str] | None = None,
        options: DecodingOptions | None = None,
        sample_rate: int | None = None,
    ) -> LongForm:
        """Translate segment by segment: iterating yields each segment as soon as it is done, dropped ones included.

        Arguments and errors as for `translate`.
        """
        targets = _targets(to)
        return translate_file(
            self.family,
            audio,
            targets,
            source,
            _declared(options, languages),
            sample_rate=sample_rate,
            activity=self._activity,
        )

    def listen(
        self,
        to: str | Sequence[str],
        *,
        source: str | None = None,
        live: LiveOptions | None = None,
        options: DecodingOptions | None = None,
    ) -> Listener:
        """Begin to translate speech that is still being spoken.

        Args:
            to: language wanted, or several; "transcribe" is the language spoken.
            source: language spoken; None identifies it stretch by stretch.
            live: options of live translation.
            options: decoding options.

        Returns:
            A listener. Call its `hear` with samples as they come, 16 kHz mono float32 in blocks of any size, and its
            `finish` at the end; both return a list of `LiveText` and `LiveNotice`.

        Raises:
            SprachbundError: a language or pair the model does not know, or options of another kind.
        """
        if not isinstance(live, LiveOptions | None):
            raise SprachbundError(f"live is {live!r}; give LiveOptions of sprachbund.streaming.options")
        engine = LiveEngine(self.family, _declared(options, None), activity=self._activity)
        return Listener(engine, engine.open(_targets(to), source, live))


def load(
    path_or_id: str | Path = BUNDLED,
    *,
    then: str | Path | None = None,
    offline: bool = False,
    real_length: bool = False,
    right_context: int | None = None,
    pool_frames: int = 1,
    engine: EngineChoice = "auto",
    threads: int | None = None,
    device: str = CPU,
) -> Model:
    """Load a model.

    Args:
        path_or_id: "bundled" or "bundled-streaming" for a model in the package, a model directory, or the name of one
            on the Hugging Face hub.
        then: a model of texts, named in the same way, that translates what the first one transcribes: a cascade, which
            writes languages that the first one does not.
        offline: never use the network, even for a name that is not on disk.
        real_length: encode speech at its own length where the family would fill up windows of 30 s (Whisper):
            faster, with results that may differ. An error for other families, which always do.
        right_context: frames of 80 ms ahead by which a transducer that streams hears recordings, so that their text is
            that of a live stream with this tier; its first tier by default. An error for other families.
        pool_frames: neighbouring frames of the encoder that are averaged before the decoder reads them: faster after
            long speech, and other text; 1 keeps all. An error for models without an attention decoder, and for speech
            LLMs.
        engine: "auto" is the fastest of the following but native-int4 on this machine, found by a short trial that is
            remembered; "torch" computes as the weights are, exactly the same everywhere; "torch-fp32", "torch-bf16"
            and "torch-int8" are torch in that precision, rearranged for speed; "native" computes in compiled kernels
            for CPUs with 8-bit weights, and "native-int4" with 4-bit ones. Texts differ a little between engines; see
            docs/runtime.md. `Model.engine` has the name of the chosen one, and the reason.
        threads: threads to compute with. Those of the native engine are its own, by default as many as the trial finds
            fastest. With any other choice of the engine it is `torch.set_num_threads` for the calling program; by
            default the number that torch has stays.
        device: computes the model: "cpu", "cuda", "cuda:1" for the second GPU, or "mps". Elsewhere than on a CPU,
            "auto" is "torch".

    Raises:
        SprachbundError: when there is no such model, or it is broken or of a family unknown here, or the engine asked
            for cannot run it, or an option that it cannot serve, or a device that is not there.
    """
    check_choice(engine, threads, device)
    directory = locate(path_or_id, offline=offline)
    family = load_family(directory, then=then, offline=offline, device=device, as_stored=True)
    if real_length:
        use_real_length(family)
    if right_context is not None:
        use_tier(family, right_context)
    if threads is not None and engine not in NATIVE:
        torch.set_num_threads(threads)
    chosen = engine_for(family, engine, threads=threads, directory=directory)
    for warning in chosen.warnings:
        warnings.warn(warning, EngineWarning, stacklevel=2)
    computed, terms = pooled(chosen.family, pool_frames), licences(path_or_id, then)
    if then is not None:
        return Model(computed, name=f"{path_or_id} then {then}", engine=chosen, licences=terms)
    return Model(computed, name=str(path_or_id), card=Card.read(directory), engine=chosen, licences=terms)


def _targets(to: str | Sequence[str]) -> list[str]:
    """The languages wanted. Raises SprachbundError for what is neither a text nor several."""
    if isinstance(to, str):
        return [to]
    if not isinstance(to, Iterable):
        raise SprachbundError(f"to is {to!r}; give a language such as 'de', or several such as ['de', 'fr']")
    return list(to)


def _declared(options: DecodingOptions | None, languages: Sequence[str] | None) -> DecodingOptions | None:
    """Options with the languages that may be spoken. Raises SprachbundError for options of another kind."""
    if not isinstance(options, DecodingOptions | None):
        raise SprachbundError(
            f"options is {options!r}; give sprachbund.DecodingOptions, such as DecodingOptions(beam_size=4)"
        )
    if languages is None:
        return options
    options = options or DecodingOptions()
    declared = (languages,) if isinstance(languages, str) else tuple(languages)
    if options.allowed_languages not in (None, declared):
        raise SprachbundError(
            f"languages are {', '.join(declared)}, and options.allowed_languages are "
            f"{', '.join(options.allowed_languages or ())}; give one of the two"
        )
    return replace(options, allowed_languages=declared)


def _card_from(family: Family, name: str) -> Card:
    return Card(
        name=name,
        source_languages=sorted({source for source, _ in family.pairs()}),
        target_languages=sorted({target for _, target in family.pairs()}),
    )
