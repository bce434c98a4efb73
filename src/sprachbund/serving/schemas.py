"""Requests and responses in the schemas of OpenAI's audio API, server-sent events, and refusals."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import log
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, TypeAdapter, ValidationError, model_validator

from sprachbund.audio.isolated import DecoderUnavailableError
from sprachbund.decoding.formats import render
from sprachbund.decoding.options import draws_tokens, no_room_for_prompt
from sprachbund.decoding.result import Segment, Translation
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family
from sprachbund.text.languages import UnknownLanguageError, writes_spaces
from sprachbund.util.options import OptionValueError

JSON, VERBOSE, TEXT = "json", "verbose_json", "text"
ResponseFormat = Literal["json", "verbose_json", "text", "srt", "vtt"]
_LEAST = 1e-10
"""Probability below which a logarithm says no more."""
HotWordList = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=1000)]
"""Hot words of a request."""
ANY_JSON: TypeAdapter[Any] = TypeAdapter(Any)
"""Reads JSON, and refuses halves of characters, which could not be sent back."""
MEDIA_TYPES = {TEXT: "text/plain", "srt": "application/x-subrip", "vtt": "text/vtt"}


class TranscriptionForm(BaseModel):
    """Fields of a request to transcribe a recording."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(min_length=1, description="Id of a model, as GET /v1/models lists them.")]
    language: Annotated[str | None, Field(description="Language spoken; identified if not given.")] = None
    languages: Annotated[
        list[str], Field(alias="languages[]", description="Languages that may be spoken, when identifying.")
    ] = []
    prompt: Annotated[
        str | None, Field(description="Context or glossary, for models with room for it.", max_length=10_000)
    ] = None
    hot_words: Annotated[
        HotWordList, Field(alias="hot_words[]", description="Words that the search prefers.")
    ] = []
    glossary: Annotated[
        str | None,
        Field(description="Term = translation; …, for cascades with a language model.", max_length=10_000),
    ] = None
    response_format: ResponseFormat = "json"
    temperature: Annotated[
        float,
        Field(
            ge=0, le=1, description="0 is greedy; above it tokens are drawn, for the same request the same."
        ),
    ] = 0.0
    granularities: Annotated[
        list[Literal["word", "segment"]],
        Field(alias="timestamp_granularities[]", description="Times in verbose_json."),
    ] = []
    include: Annotated[
        list[Literal["logprobs"]],
        Field(alias="include[]", description="Log-probabilities of the words, in json."),
    ] = []
    digits: Annotated[bool, Field(description="Numbers, dates, times and amounts in digits.")] = False
    punctuate: Annotated[
        bool, Field(description="Punctuation and capitals restored, for models that write words only.")
    ] = False
    stream: Annotated[bool, Field(description="Server-sent events, for json and verbose_json.")] = False
    allow_damaged: Annotated[
        bool, Field(description="Take what can be read of a file that is cut off or damaged, with a warning.")
    ] = False
    chunking_strategy: Annotated[
        Literal["auto"] | None, Field(description="Speech is always found by voice activity, which is auto.")
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, values: Any) -> Any:
        """The fields but for those left empty, which forms send too, and which ask for nothing."""
        if not isinstance(values, dict):
            return values
        names = {field.alias or name for name, field in cls.model_fields.items()}
        return {
            name: [one for one in value if one != ""] if isinstance(value, list) else value
            for name, value in values.items()
            if value != "" or name not in names
        }

    @property
    def languages_sent(self) -> Mapping[str, Collection[str]]:
        """Languages that were sent, by the name of their field."""
        return {"language": [self.language or ""], "languages[]": self.languages}

    @property
    def sent(self) -> Mapping[str, tuple[str, Any]]:
        """Name and value of the fields that set a field of `DecodingOptions` of another name, by the latter."""
        words: tuple[str, Any] = ("timestamp_granularities[]", self.granularities)
        return {
            "allowed_languages": ("languages[]", self.languages),
            "hot_words": ("hot_words[]", self.hot_words),
            "word_timestamps": words if self.words else ("include[]", self.include),
        }

    @property
    def words(self) -> bool:
        """Whether words are to have times."""
        return "word" in self.granularities

    @property
    def log_probs(self) -> bool:
        """Whether log-probabilities are wanted."""
        return "logprobs" in self.include

    _notes: list[str] = PrivateAttr(default_factory=list)

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each field of the request that has no effect."""
        return tuple(self._notes)

    def prompt_for(self, family: Family) -> str | None:
        """The prompt for a model that reads one; for others none, and a note says so, since OpenAI's models all do."""
        if not self.prompt or family.capabilities.reads_context:
            return self.prompt or None
        self._notes.append(f"{no_room_for_prompt(family)}; it was not used")
        return None

    def temperature_for(self, family: Family) -> float:
        """The temperature at which a model decodes; where it draws no tokens it is 0, and a note says so."""
        if self.temperature == 0 or draws_tokens(family):
            return self.temperature
        self._notes.append(
            f"temperature {self.temperature:g} has no effect: {family.name} writes without drawing tokens"
        )
        return 0.0


class TranslationForm(TranscriptionForm):
    """Fields of a request to translate a recording."""

    target_language: Annotated[
        str, Field(min_length=1, description="Language wanted, as a tag or a name.")
    ] = "en"

    @property
    def languages_sent(self) -> Mapping[str, Collection[str]]:
        """Languages that were sent, by the name of their field."""
        return {"target_language": [self.target_language], **super().languages_sent}


class TextForm(BaseModel):
    """Texts to translate."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(min_length=1)]
    input: str | list[str]
    target_language: Annotated[str, Field(min_length=1)]
    source_language: str | None = None
    glossary: Annotated[str | None, Field(max_length=10_000)] = None

    @property
    def languages_sent(self) -> Mapping[str, Collection[str]]:
        """Languages that were sent, by the name of their field."""
        return {"target_language": [self.target_language], "source_language": [self.source_language or ""]}

    @property
    def texts(self) -> list[str]:
        """Texts as a list."""
        return [self.input] if isinstance(self.input, str) else self.input


def body_of(translation: Translation, form: TranscriptionForm, task: str) -> str:
    """The response body of a finished translation; json has `warnings` only where there are some.

    Args:
        translation: the result.
        form: the request, with `response_format` and granularities.
        task: "transcribe" or "translate", as verbose_json states it.
    """
    if form.response_format == TEXT:
        return translation.text + "\n"
    if form.response_format in MEDIA_TYPES:
        return render(translation, form.response_format)
    values: dict[str, Any] = {"text": translation.text, "usage": usage(translation.duration_s)}
    if form.log_probs:
        values["logprobs"] = log_probs(translation.segments)
    if form.response_format == VERBOSE:
        values |= _verbose(translation, form, task)
    elif warnings := warnings_of(translation, form):
        values["warnings"] = warnings
    return as_json(values)


def warnings_of(translation: Translation, form: TranscriptionForm) -> list[str]:
    """Return the warnings for the caller, of the recording and of the request, one line each."""
    return [*translation.warnings, *form.notes]


def usage(duration_s: float) -> dict[str, Any]:
    """The amount of work, which other services charge for and this one only reports."""
    return {"type": "duration", "seconds": round(duration_s, 3)}


def log_probs(segments: Iterable[Segment], *, begins: bool = True) -> list[dict[str, Any]]:
    """OpenAI's entries of segments that follow one another, one for each word; joined they are the text.

    Args:
        segments: segments in order.
        begins: whether nothing stands before the first of them.
    """
    entries: list[dict[str, Any]] = []
    for segment in segments:
        words = [(word.text, word.probability) for word in segment.words]
        entries += log_probs_of(words, segment.target_language, begins=begins and not entries)
    return entries


def log_probs_of(
    words: Sequence[tuple[str, float]], language: str, *, begins: bool = True
) -> list[dict[str, Any]]:
    """OpenAI's entries, one for each word: the mean probability of its tokens, as a natural logarithm.

    Args:
        words: texts with probabilities.
        language: language of the text.
        begins: whether nothing stands before the first word.
    """
    space = " " if writes_spaces(language) else ""
    texts = [
        f"{'' if begins and not number else space}{text.strip()}" for number, (text, _) in enumerate(words)
    ]
    return [
        {"token": text, "bytes": [*text.encode()], "logprob": round(log(max(probability, _LEAST)), 4)}
        for text, (_, probability) in zip(texts, words, strict=True)
    ]


def segment_values(segment: Segment, number: int) -> dict[str, Any]:
    """A segment in OpenAI's names, and what it lacks under ours.

    `no_speech_prob` is the model's own probability that nobody speaks; from models without one, the complement of
    voice activity.
    """
    no_speech, doubt = segment.no_speech_probability, segment.out_of_domain
    return {
        "id": number,
        "seek": round(segment.start_s * 100),
        "start": round(segment.start_s, 3),
        "end": round(segment.end_s, 3),
        "text": segment.text,
        "tokens": [],
        "temperature": segment.temperature,
        "avg_logprob": round(segment.mean_log_probability, 4),
        "compression_ratio": round(segment.compression_ratio, 4),
        "no_speech_prob": round(1 - segment.speech_probability if no_speech is None else no_speech, 4),
        "source_language": segment.source_language,
        "out_of_domain": None if doubt is None else round(doubt, 4),
        "dropped": segment.dropped,
        "spans": [
            {"start": round(span.start_s, 3), "end": round(span.end_s, 3), "language": span.language}
            for span in segment.spans
        ],
    }


def _verbose(translation: Translation, form: TranscriptionForm, task: str) -> dict[str, Any]:
    spoken = translation.source_language or "und"
    values: dict[str, Any] = {
        "task": task,
        "language": spoken if task == "transcribe" else translation.target_language,
        "source_language": spoken,
        "duration": round(translation.duration_s, 3),
        "segments": [segment_values(segment, n) for n, segment in enumerate(translation.segments)],
        "dropped": [segment_values(segment, n) for n, segment in enumerate(translation.dropped)],
        "warnings": warnings_of(translation, form),
    }
    if form.words:
        words = (word for segment in translation.segments for word in segment.words)
        values["words"] = [
            {"word": word.text, "start": round(word.start_s, 3), "end": round(word.end_s, 3)}
            for word in words
        ]
    return values


class Events:
    """Server-sent events of a recording whose segments come one by one; the deltas joined are the text."""

    def __init__(self, form: TranscriptionForm) -> None:
        self._form, self._verbose = form, form.response_format == VERBOSE
        self._log_probs = form.log_probs
        self._count, self._begun = 0, False

    def of_segment(self, segment: Segment, duration_s: float | None) -> Iterable[str]:
        """Events of a segment: its text, and in verbose_json its values; of a dropped one only the values."""
        text = "" if segment.dropped else segment.text.strip()
        if text:
            space = " " if self._begun and writes_spaces(segment.target_language) else ""
            entries = log_probs([segment], begins=not self._begun) if self._log_probs else None
            extra = {} if entries is None else {"logprobs": entries}
            yield event({"type": "transcript.text.delta", "delta": space + text, **extra})
            self._begun = True
        if self._verbose:
            values = segment_values(segment, self._count) | {"text": text, "duration": duration_s}
            values |= {
                "id": str(self._count),
                "speaker": "",
            }  # their types in OpenAI's stream; nobody is told apart
            yield event({"type": "transcript.text.segment", **values})
            self._count += 1

    def of_end(self, translation: Translation) -> Iterable[str]:
        """The whole text."""
        values: dict[str, Any] = {"text": translation.text, "usage": usage(translation.duration_s)}
        if self._log_probs:
            values["logprobs"] = log_probs(translation.segments)
        warnings = warnings_of(translation, self._form)
        if self._verbose:
            values |= {"duration": round(translation.duration_s, 3), "warnings": warnings}
        elif warnings:
            values["warnings"] = warnings
        yield event({"type": "transcript.text.done", **values})
        yield "data: [DONE]\n\n"


def event(values: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {as_json(values)}\n\n"


def as_json(values: Any) -> str:
    """JSON text, letters outside ASCII as they are."""
    return json.dumps(values, ensure_ascii=False)


# Refusals: a status and one line with the reason, in the error body that OpenAI's clients read.

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}

_RETRY_S = 5.0  # after which a process can perhaps be started


class RefusalError(SprachbundError):
    """A request that is refused.

    Args:
        status: status of HTTP.
        message: one line: the value seen, and what to do next.
        code: a word for programs.
        param: the field at fault.
        retry_after_s: seconds after which the client may try again; None when it would not help.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after_s = status, code, param, retry_after_s

    @property
    def message(self) -> str:
        """Message in one line."""
        return " ".join(str(self).split())

    def body(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """The headers of the answer: Retry-After, and the scheme of authentication."""
        headers = (
            {} if self.retry_after_s is None else {"retry-after": str(max(1, round(self.retry_after_s)))}
        )
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


@contextmanager
def named_as_sent(
    sent: Mapping[str, tuple[str, Any]], languages: Mapping[str, Collection[str]]
) -> Iterator[None]:
    """Context manager that lets errors about options and languages name the fields that the client sent.

    Args:
        sent: field of the options to name and value of the client's field; others have the same in both.
        languages: name of the client's field to the languages in it.

    Raises:
        RefusalError: 400, in place of such an error.
    """
    try:
        yield
    except UnknownLanguageError as error:
        field = next((name for name, typed in languages.items() if error.typed in typed), None)
        raise RefusalError(400, str(error), code="unknown_language", param=field) from error
    except OptionValueError as error:
        name, value = sent.get(error.field, (error.field, error.value))
        names = {field: one for field, (one, _) in sent.items()}
        raise RefusalError(400, error.named(names, repr(value)[:200]), param=name) from error


@dataclass(frozen=True, kw_only=True)
class FieldFault:
    """The first thing that is wrong with what a client sent.

    Attributes:
        field: its names, with dots between; empty for the whole.
        kind: pydantic's name of the fault.
        reason: the value seen, and the next step.
    """

    field: str
    kind: str
    reason: str


def field_fault(
    errors: Sequence[Mapping[str, Any]],
    *,
    inside: str = "",
    tagged: bool = False,
    tags: Collection[str] = (),
    known: Iterable[str] = (),
) -> FieldFault:
    """What pydantic found first, in the words of this project.

    Args:
        errors: of an error of pydantic, or of FastAPI.
        inside: names of the field that was read; empty for the whole.
        tagged: whether a union was read, whose errors begin with the type of the message.
        tags: types of messages within the field, which pydantic counts among the names.
        known: names of the fields that there are.
    """
    first = errors[0]
    kind, (_, should, wanted) = first["type"], first["msg"].partition(" should ")
    names_of_field = (str(name) for name in first["loc"][tagged:] if name not in tags)
    field = ".".join([*filter(None, [inside]), *names_of_field])
    name = field or "it"
    if kind == "missing":
        reason = f"the field {field!r} is missing; send it"
    elif kind == "extra_forbidden":
        names = ", ".join(known)
        reason = f"the field {field!r} is not known here; {f'there are {names}' if names else 'leave it out'}"
    elif kind == "none_required":
        reason = f"{name} is {_shown(first['input'])}, which is not offered; leave it out"
    elif kind == "union_tag_invalid":
        reason = (
            f"{name} has the type {_shown(first['ctx']['tag'])}; choose from {first['ctx']['expected_tags']}"
        )
    elif kind == "value_error" or not should:  # a sentence of this project's own, or about the whole
        reason = f"{field and f'{field}: '}{first['msg'].removeprefix('Value error, ')}"
    else:
        wanted = "be an object" if kind in NO_OBJECT else wanted.partition(", unable to parse")[0]
        reason = f"{name} is {_shown(first['input'])}; it should {wanted}"
    return FieldFault(field=field, kind=kind, reason=reason)


NO_OBJECT = ("dict_type", "model_type", "model_attributes_type")
"""What pydantic calls a value that is no object where one should be."""


def _shown(value: Any) -> str:
    """A value that a client sent, cut where it is long, and its kind where it holds others."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def unknown_type(error: ValidationError, known: Sequence[str]) -> str:
    """Reason why a message has no known type; empty where its type is known.

    Args:
        error: error of a union of messages that their field `type` tells apart.
        known: types to choose from.
    """
    first = error.errors(include_url=False, include_input=False)[0]
    if not first["type"].startswith("union_tag"):
        return ""
    seen = f"has the type {str(first['ctx']['tag'])[:80]!r}" if "tag" in first["ctx"] else "has no type"
    return f"it {seen}; choose from {', '.join(known)}"


def stopping_refusal() -> RefusalError:
    """The refusal of anything new while the service is being stopped."""
    return RefusalError(503, "the service is being stopped; try again later", retry_after_s=30)


def refusal_of(error: BaseException) -> RefusalError:
    """Status and message of an error: the client's fault for errors of ours, else the server's, without details."""
    if isinstance(error, RefusalError):
        return error
    if isinstance(error, DecoderUnavailableError):
        return RefusalError(503, str(error), code="no_decoder", retry_after_s=_RETRY_S)
    if isinstance(error, OptionValueError):
        return RefusalError(400, str(error), param=error.field)
    if isinstance(error, SprachbundError):
        return RefusalError(400, str(error))
    return RefusalError(
        500, "an unexpected error on the server; its log has the details under the request's id"
    )
