"""From a model to what is trained in its place by arXiv 2508.11189, and from that to what is kept."""

from typing import Any

from sprachbund.errors import SprachbundError
from sprachbund.models.dual_scale import DualScale, DualScaleOptions
from sprachbund.models.pruning import prune_decoder
from sprachbund.nn.text_encoder import TextEncoder
from sprachbund.training.draft import DraftOptions, make_network
from sprachbund.training.lora import add_lora


def make_dual_scale(model: Any, options: DualScaleOptions) -> DualScale:
    """Prune a model's decoder and put a text encoder, a guesser and adapters around it.

    The text encoder starts from the first decoder layers of the model as it was; the guesser fits the pruned decoder.
    The model itself is not changed where it is pruned.

    Raises:
        SprachbundError: more layers or blocks than there are.
    """
    base = model if options.decoder_layers is None else prune_decoder(model, options.decoder_layers)
    text = _text_encoder(model, options.text_layers)
    guesser = None
    if options.draft != "none":
        wanted = DraftOptions(
            kind=options.draft, blocks=options.blocks, heads=options.heads, pre_ln_q=options.pre_ln_q
        )
        guesser = make_network(base, wanted)
    whole = DualScale(base, text, guesser, options)
    add_adapters(whole)
    return whole


def add_adapters(whole: DualScale) -> None:
    """Adapters on the linear layers of the lower encoder layers; what else the encoder has below the upper ones rests.

    A model whose encoder has no more layers than are trained wholly gets none, and all of it is trained.
    """
    options = whole.options
    count = len(whole.base.encoder.layers)
    lower = max(0, count - options.whole_layers)
    if lower == 0:
        return
    sides = [f"base.{name}.*" for name, _ in whole.base.named_children() if name != "encoder"]
    beside = [f"{name}.*" for name in ("text_encoder", "guesser") if getattr(whole, name) is not None]
    upper = [f"base.encoder.layers.{n}.*" for n in range(lower, count)]
    add_lora(
        whole,
        tuple(f"base.encoder.layers.{n}.*" for n in range(lower)),
        options.lora_rank,
        scale=options.lora_alpha / options.lora_rank,
        whole=(*sides, *beside, *upper),
    )


def _text_encoder(model: Any, num_layers: int) -> TextEncoder | None:
    if num_layers == 0:
        return None
    try:
        return TextEncoder.like(model.decoder, num_layers)
    except ValueError as error:
        raise SprachbundError(f"{error}; 0 leaves the text branch out") from error
