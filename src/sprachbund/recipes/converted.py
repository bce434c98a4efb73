"""Public streaming checkpoints made into model directories, with a card that says where they come from."""

from collections.abc import Sequence
from pathlib import Path

from sprachbund.errors import SprachbundError
from sprachbund.models.card import Card
from sprachbund.models.conformer import Conformer
from sprachbund.models.conformer.directory import save
from sprachbund.models.conformer.foreign import assemble
from sprachbund.models.conformer.nemo_file import read_nemo
from sprachbund.models.conformer.transformers_directory import MODEL_TYPE, read_transformers
from sprachbund.models.directory import locate
from sprachbund.recipes.smaller import check_new, write_whole


def convert(
    checkpoint: str, out: Path, languages: Sequence[str], *, licence: str = "", offline: bool = False
) -> Conformer:
    """Write a model directory of a checkpoint.

    Args:
        checkpoint: a `.nemo` file, or a directory or Hugging Face id in transformers' form (`nemotron_asr_streaming`).
        out: is to hold the model.
        languages: BCP-47 tags that the checkpoint hears and writes; its files do not say.
        licence: of the weights, for the card.
        offline: never use the network.

    Raises:
        SprachbundError: the place is taken, or the checkpoint cannot be read.
    """
    check_new(out)
    if not languages:
        raise SprachbundError(f"{checkpoint} does not say which languages it hears; name them")
    path = Path(checkpoint)
    is_file = path.suffix == ".nemo" or path.is_file()
    read = read_nemo(path) if is_file else read_transformers(locate(checkpoint, offline=offline))
    model = assemble(read, languages)
    kind = "NeMo" if is_file else f"transformers, {MODEL_TYPE}"
    card = Card(
        name=path.stem if is_file else path.name,
        description=f"A cache-aware FastConformer transducer, converted from a checkpoint ({kind}).",
        licence=licence,
        source_languages=list(languages),
        target_languages=list(languages),
        training={"made_from": {"model": path.name, "by": "convert"}},
    )
    write_whole(out, lambda draft: save(model, draft, card=card))
    return model
