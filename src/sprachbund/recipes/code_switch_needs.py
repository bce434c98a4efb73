"""What a size of the comparison needs, told without running it: models of the true shape on the meta device."""

from functools import cache

from pydantic import BaseModel, ConfigDict

from sprachbund.models.directory import load
from sprachbund.models.speech_llm import ProjectorOptions, SpeechLLM, SpeechLLMConfig
from sprachbund.models.speech_llm.encoders import of_family
from sprachbund.models.speech_llm.sizes import paper_shape, sizes_of
from sprachbund.models.speech_llm.stages import STAGES
from sprachbund.models.speech_llm.text_llm import make_text_llm
from sprachbund.recipes.code_switch_options import ARMS, CodeSwitchRecipe

PUBLISHED = "openai/whisper-large-v3"
"""The encoder whose shape is counted without weights, with Qwen2.5-7B's."""


class Training(BaseModel):
    """One arm.

    Attributes:
        name: of the arm.
        projector: parameters of all experts, router and splicing.
        active: of them, what a speech token goes through.
        adapters: of both.
        total: with encoder and language model.
        weights_gib: of all in 16 bits.
        training_gib: frozen weights in 16 bits; weight, gradient and two moments in 32 of what is trained. Activations
            come on top.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    projector: int
    active: int
    adapters: int
    total: int
    weights_gib: float
    training_gib: float


class Needs(BaseModel):
    """What a size needs.

    Attributes:
        model: in words.
        languages: spoken.
        encoder: its parameters.
        llm: of the language model.
        arms: of all.
        stages: trainings in all, those that arms share counted once.
        steps: of all trainings together.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    languages: tuple[str, ...]
    encoder: int
    llm: int
    arms: tuple[Training, ...]
    stages: int
    steps: int


def needs(recipe: CodeSwitchRecipe) -> Needs:
    """What a recipe's arms need, around the published pair, or an encoder that is there and a small language model.

    Raises:
        SprachbundError: an encoder that is not there, or of a kind that is not taken.
    """
    arms = []
    size_of = cache(lambda projector: sizes_of(_shape(recipe, projector)))
    for name in recipe.all_arms:
        sizes = size_of(recipe.projector_of(ARMS[name]))
        arms.append(
            Training(
                name=name,
                projector=sizes.projector,
                active=sizes.active,
                adapters=sizes.encoder_adapters + sizes.llm_adapters,
                total=sizes.total,
                weights_gib=sizes.inference_gib(),
                training_gib=sizes.training_gib(),
            )
        )
    lasts = [stages[-1] for length in range(1, len(STAGES) + 1) for _, _, stages in recipe.chains(length)]
    return Needs(
        model="Whisper-large-v3's encoder and Qwen2.5-7B"
        if recipe.encoder == PUBLISHED
        else f"the encoder of {recipe.encoder} and a language model of its own",
        languages=recipe.languages,
        encoder=sizes.encoder,
        llm=sizes.llm,
        arms=tuple(arms),
        stages=len(lasts),
        steps=sum(recipe.steps[stage.name] for stage in lasts),
    )


def _shape(recipe: CodeSwitchRecipe, projector: ProjectorOptions) -> SpeechLLM:
    if recipe.encoder == PUBLISHED:
        return paper_shape(projector)
    encoder = of_family(load(recipe.encoder, offline=True))
    config = SpeechLLMConfig(projector=projector, target_languages=recipe.targets, lora=recipe.lora)
    return SpeechLLM(encoder, make_text_llm(recipe.text_llm), config)
