"""Writing models that were made from others: saved whole or not at all, with a card that names their origin.

The last section converts public checkpoints into model directories.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from sprachbund.compression.quantization import stored_size
from sprachbund.errors import SprachbundError
from sprachbund.models import FAMILIES
from sprachbund.models.calibration import DOMAIN_FILE, TURNS_FILE
from sprachbund.models.card import Card
from sprachbund.models.conformer import Conformer
from sprachbund.models.conformer.checkpoints import MODEL_TYPE, assemble, read_nemo, read_transformers
from sprachbund.models.drafts import find_drafts
from sprachbund.models.fastconformer import Canary, Parakeet
from sprachbund.models.fastconformer.nemo import Head, is_streaming, read
from sprachbund.models.hub import find, stated_family
from sprachbund.models.io import locate, save
from sprachbund.models.licence import licences
from sprachbund.models.nemo_archive import open_archive
from sprachbund.models.weights import Bits, read_packed_linears
from sprachbund.util.files import atomic_directory, copy_file, is_empty


def check_new(out: Path) -> None:
    """Raise a SprachbundError for a directory that is taken."""
    if out.exists() and (not out.is_dir() or not is_empty(out)):
        raise SprachbundError(f"{out} is there already; choose another --out")


def bits_of(directory: Path) -> Bits:
    """Bits that a model's matrices are stored in, packed ones aside; 32 where they differ."""
    if read_packed_linears(directory) is not None:
        return 32
    bits = stored_size(directory).bits
    return cast("Bits", bits) if bits in (8, 16) else 32


def card_of(family: Any, source: Path, name: str, how: dict[str, Any], *, model: str) -> Card:
    """The card of a model that was made from another; the scores of the other one are left out.

    Args:
        family: the new model.
        source: directory of the other one.
        name: name of the new model.
        how: the command and its options, for the card.
        model: the other model as a person named it, by which the licence of a public one without a card is known.
    """
    old = Card.read(source) or Card(
        name=model,
        source_languages=sorted({s for s, _ in family.pairs()}),
        target_languages=sorted({t for _, t in family.pairs()}),
    )
    training = {**old.training, "made_from": {"model": old.name, **how}}
    licence = old.licence or " and ".join(one.name for one in licences(model) if one.name)
    return old.model_copy(update={"name": name, "licence": licence, "scores": [], "training": training})


def save_smaller(
    family: Any, source: Path, directory: Path, bits: Bits, how: dict[str, Any], *, name: str, model: str
) -> None:
    """Write a model that was made from the one in `source`.

    Args:
        family: the smaller model.
        source: directory of the larger one.
        directory: is to hold it.
        bits: bits of a weight.
        how: for the card.
        name: for the card.
        model: see `card_of`.

    Raises:
        SprachbundError: the family has no place for so few bits.
    """
    save(family, directory, bits=bits, card=card_of(family, source, name, how, model=model))


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Yield a folder to write to; it is there under the name `out`, whole, when the block ends without an error.

    Raises:
        SprachbundError: the directory is taken.
    """
    check_new(out)
    with atomic_directory(out) as draft:
        yield draft


def write_whole(out: Path, write: Callable[[Path], None]) -> None:
    """Let a new directory be written; see `new_directory`."""
    with new_directory(out) as draft:
        write(draft)


def copy_drafts(source: Path, out: Path) -> list[str]:
    """Copy the drafts beside a model to one of the same depth and vocabulary; their names."""
    drafts = find_drafts(source)
    for path in drafts.values():
        copy_file(path, out / path.name)
    return list(drafts)


def copy_calibrations(source: Path, out: Path) -> None:
    """Copy the calibrations beside a model to one of the same weights."""
    for name in (DOMAIN_FILE, TURNS_FILE):
        if (source / name).exists():
            copy_file(source / name, out / name)


# Public checkpoints of other layouts.


def convert(
    checkpoint: str,
    out: Path,
    languages: Sequence[str],
    *,
    licence: str = "",
    offline: bool = False,
    head: Head | None = None,
) -> Conformer | Parakeet | Canary:
    """Write a model directory of a checkpoint.

    Args:
        checkpoint: a `.nemo` file, or a directory or Hugging Face id in transformers' form of a streaming transducer.
        out: is to hold the model.
        languages: BCP-47 tags that the checkpoint hears and writes; streaming models do not say.
        licence: licence of the weights, for the card.
        offline: never use the network.
        head: head of a hybrid of NeMo that does not stream; its transducer if None.

    Raises:
        SprachbundError: the directory is taken, the checkpoint cannot be read, or it is read as it is.
    """
    check_new(out)
    path = Path(checkpoint)
    is_file = path.suffix == ".nemo" or path.is_file()
    # What it is, is looked at before a person is asked what it does not say, and before its weights are fetched.
    described = path if is_file else find(checkpoint, offline=offline, weights=False)
    if (kind := stated_family(described)) in FAMILIES:
        raise SprachbundError(f"{checkpoint} is a {kind} model, which is read as it is; give it to --model")
    archive = open_archive(path) if is_file else None
    model: Conformer | Parakeet | Canary
    if archive is not None and not is_streaming(archive):
        model = read(archive, tuple(languages), head)
        kind = f"{model.name}, converted from a NeMo archive"
    else:
        if head is not None:
            raise SprachbundError(
                f"{checkpoint}: it streams, and its transducer alone is used; leave --head out"
            )
        if not languages:
            raise SprachbundError(
                f"{checkpoint} does not say which languages it hears; name them with --language"
            )
        checkpoint_read = (
            read_transformers(locate(checkpoint, offline=offline)) if archive is None else read_nemo(archive)
        )
        model = assemble(checkpoint_read, languages)
        origin = f"transformers, {MODEL_TYPE}" if archive is None else "NeMo"
        kind = f"A cache-aware FastConformer transducer, converted from a checkpoint ({origin})"
    card = Card(
        name=path.stem if is_file else path.name,
        description=f"{kind}.",
        licence=licence,
        source_languages=sorted({source for source, _ in model.pairs()}),
        target_languages=sorted({target for _, target in model.pairs()}),
        training={"made_from": {"model": path.name, "by": "convert"}},
    )
    write_whole(out, lambda draft: save(model, draft, card=card))
    return model
