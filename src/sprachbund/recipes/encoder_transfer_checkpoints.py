"""What checkpoints have to be for the transfer study, told from their configurations before anything is trained."""

from pathlib import Path

from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import Conformer, ConformerShape
from sprachbund.models.conformer.directory import read_config
from sprachbund.models.directory import family_of, locate
from sprachbund.models.packed_linears import read_packed_linears
from sprachbund.models.splice import read_layers
from sprachbund.recipes.encoder_transfer_options import FRAME_MS, EncoderTransferRecipe

_OF_ENCODER = (
    "num_mel_bins",
    "width",
    "num_heads",
    "num_encoder_layers",
    "feed_forward_width",
    "kernel_size",
)
_CONTEXTS = ("left_context", "right_contexts")
"""Which may differ: no tensor knows them, and the study's tiers are looked at by themselves."""


def check_checkpoints(recipe: EncoderTransferRecipe) -> None:
    """See that the checkpoints are what the study asks for, before anything is trained.

    Raises:
        SprachbundError: one of another family or head, that does not stream, or not at a tier of the grid; encoders of
            different kinds; layers that there are not.
    """
    shapes: dict[str, ConformerShape] = {}
    for name, one in recipe.pretrained.items():
        if one.checkpoint is not None:
            _check_checkpoint(recipe, one.checkpoint)
        shapes[name] = recipe.shape if one.checkpoint is None else read_config(one.checkpoint)
    shared = shapes[recipe.shared]
    for name, shape in shapes.items():
        wanted = _encoder_kind(shared)
        for key, value in _encoder_kind(shape).items():
            if value != wanted[key]:
                raise SprachbundError(
                    f"{name} and {recipe.shared} have encoders of different kinds, whose layers cannot be exchanged: "
                    f"model.{key} is {value} and {wanted[key]}"
                )
    for name in recipe.grid.starts:
        read_layers(recipe.starts[name], shared.num_encoder_layers)


def _encoder_kind(shape: ConformerShape) -> dict[str, object]:
    """All that an encoder is made by, but what it is trained with."""
    streaming = {} if shape.streaming is None else shape.streaming.model_dump()
    own = {f"streaming.{key}": value for key, value in streaming.items() if key not in _CONTEXTS}
    return {key: getattr(shape, key) for key in _OF_ENCODER} | own


def _check_checkpoint(recipe: EncoderTransferRecipe, directory: Path) -> None:
    if directory.is_file():
        locate(directory, offline=True)  # says how a model is made of it
    if family_of(directory) != Conformer.name:
        raise SprachbundError(
            f"{directory} is a {family_of(directory)} model; starts are made of {Conformer.name} ones"
        )
    config = read_config(directory)
    if config.streaming is None:
        raise SprachbundError(f"{directory} has no encoder that streams; take a model that has one")
    if (packed := read_packed_linears(directory)) is not None:
        raise SprachbundError(
            f"{directory} has an encoder in {packed.bits} bits, which is not trained; take the model that it "
            "was made of"
        )
    known = config.streaming.tiers()
    for name in recipe.grid.tiers:
        if (wanted := recipe.tier(name)) not in known:
            told = ", ".join(f"{(tier.right + 1) * FRAME_MS} ms" for tier in known)
            raise SprachbundError(
                f"{directory} was trained with {known[0].left} frames of the past at {told}, not with {wanted.left} at "
                f"{name}; change [model.streaming] and grid.tiers to what it has"
            )
    head = "transducer" if config.writes_by_frames else "attention"
    if head != recipe.head:
        raise SprachbundError(
            f'{directory} writes by its {head} head, not {recipe.head}; set head = "{head}"'
        )
