"""Configuration of a speech LLM, apart from its encoder and its language model."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from sprachbund.errors import SprachbundError
from sprachbund.nn.limits import (
    LAYERS,
    Experts,
    Flag,
    InnerWidth,
    Layers,
    Positions,
    SomeLayers,
    Weight,
    Width,
)

Part = Literal["text", "speech"]


class Options(BaseModel):
    """Frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ProjectorOptions(Options):
    """Options of the projector from encoder states to speech tokens; the sizes are ours, the paper's are not public.

    Attributes:
        groups: BCP-47 tags of the languages of each group of experts; languages that share a group stand in one.
        group_size: n, experts of a group.
        num_chosen: C, experts that a speech token goes through, out of all groups.
        hidden_width: F of every expert.
        num_layers: L.
        spliced_frames: encoder states that become one speech token.
        encoder_layers: layers of the encoder, counted from 0, whose states are read beside the last ones: upper layers
            spread one language over an utterance, and lower ones tell better which is spoken at a moment.
        router_context: speech tokens on each side of one that the router reads beside it; experts see it alone.
    """

    groups: tuple[tuple[str, ...], ...]
    group_size: Experts = 4
    num_chosen: Experts = 2
    hidden_width: InnerWidth = 2048
    num_layers: SomeLayers = 2
    spliced_frames: int = Field(default=5, strict=True, ge=1, le=1000)
    encoder_layers: tuple[Layers, ...] = Field(default=(), max_length=LAYERS.most)
    router_context: int = Field(default=0, strict=True, ge=0, le=1000)

    @property
    def languages(self) -> tuple[str, ...]:
        """All tags, group after group."""
        return tuple(tag for group in self.groups for tag in group)

    @property
    def num_experts(self) -> int:
        """Number K of experts."""
        return len(self.groups) * self.group_size

    @model_validator(mode="after")
    def _check(self) -> Self:
        tags = self.languages
        if not self.groups or not all(self.groups):
            raise ValueError("every group needs a language, and there has to be a group")
        if twice := sorted({tag for tag in tags if tags.count(tag) > 1}):
            raise ValueError(f"{twice[0]!r} stands in two groups; a language belongs to one")
        if self.num_chosen > self.num_experts:
            raise ValueError(f"num_chosen is {self.num_chosen}, but there are {self.num_experts} experts")
        return self


def plain_mixture(options: ProjectorOptions) -> ProjectorOptions:
    """The baseline of as many experts without groups: its balance loss is that over all of them."""
    return options.model_copy(update={"groups": (options.languages,), "group_size": options.num_experts})


def dense(options: ProjectorOptions, equal: Literal["active", "total"]) -> ProjectorOptions:
    """The baseline of one feed-forward, as wide as the experts chosen together, or as all there are."""
    times = options.num_chosen if equal == "active" else options.num_experts
    changes = {
        "group_size": 1,
        "num_chosen": 1,
        "hidden_width": times * options.hidden_width,
        "router_context": 0,
    }
    return options.model_copy(update={"groups": (options.languages,), **changes})


class LoraOptions(Options):
    """Adapters (arXiv 2106.09685) on the frozen parts.

    Attributes:
        rank: rank r of the adapters.
        alpha: alpha of the adapters, whose product is multiplied by alpha / r.
        encoder: last parts of the names of linear layers of the encoder; None for those that its kind calls for, and
            no name for none.
        llm: last parts of the names of linear layers of the language model.
    """

    rank: Width = 8
    alpha: Width = 32
    encoder: tuple[str, ...] | None = None
    llm: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


class PromptOptions(Options):
    """Instructions of the language model.

    Attributes:
        transcribe: request for a text in the language spoken.
        translate: request for a translation; `{language}` becomes the language's English name.
        order: order of instruction and speech; the paper's is the text first.
        chat: speak through the tokenizer's chat template; None where it has one.
    """

    transcribe: str = "Transcribe the speech."
    translate: str = "Translate the speech into {language}."
    order: tuple[Part, Part] = ("text", "speech")
    chat: Flag | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sorted(self.order) != ["speech", "text"]:
            raise ValueError(f"order is {self.order}; it has to hold 'text' and 'speech' once each")
        if "{language}" not in self.translate:
            raise ValueError(f"translate is {self.translate!r}; it has to name the {{language}}")
        return self

    def check_order(self, trained: Sequence[str]) -> None:
        """Raise SprachbundError when a model was trained with instruction and speech the other way round."""
        if self.order != tuple(trained):
            asked, known = (" before ".join(order) for order in (self.order, trained))
            raise SprachbundError(
                f"the prompts put {asked}, but the model was trained with {known}; set prompts.order to "
                f"{list(trained)}, or train it anew"
            )


class LossWeights(Options):
    """Weights of the losses beside the language model's cross-entropy.

    Attributes:
        language: weight of L_lang.
        balance: weight of L_bal.
        by_frame: take the language of each frame from the spans, where a batch has them, not the utterance's set.
        embedded: how often a frame in another language than the utterance's main one counts in L_lang, which is a mean
            over frames; such frames are fewer. Without `by_frame` it has no effect.
    """

    language: Weight = 0.1
    balance: Weight = 0.01
    by_frame: Flag = False
    embedded: Weight = 1.0


class SpeechLLMConfig(Options):
    """Everything but encoder and language model.

    Attributes:
        projector: sizes and groups; its languages are those that the model hears.
        target_languages: BCP-47 tags that it writes.
        lora: adapters.
        prompts: instructions of the language model.
        losses: weights.
        max_new_tokens: longest text, in tokens.
    """

    projector: ProjectorOptions
    target_languages: tuple[str, ...] = Field(min_length=1)
    lora: LoraOptions = LoraOptions()
    prompts: PromptOptions = PromptOptions()
    losses: LossWeights = LossWeights()
    max_new_tokens: Positions = 256
