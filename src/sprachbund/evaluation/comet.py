"""COMET, a learned metric, for those who have it installed; it is large and needs its model.

The model is a checkpoint on disk (used without the network), or a name on the Hugging Face hub (fetched). Scores
are those that the package's own command prints: it computes in half precision, in batches of texts of like length
taken from all of a file, and both decide the last digits.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sprachbund.errors import SprachbundError

MODEL = "Unbabel/wmt22-comet-da"
_CHECKPOINT = Path("checkpoints") / "model.ckpt"  # where a model's directory on the hub has it
_SETTINGS = "hparams.yaml"  # which the package looks for in the folder above the checkpoint's
_BATCH_SIZE = 16  # the command's


class Comet:
    """A loaded COMET model with references.

    Args:
        model: directory as downloaded from the hub (`hparams.yaml`, `checkpoints/model.ckpt`), the checkpoint
            in one, or a name on the hub.
        offline: never use the network; a name is found if it was downloaded before.

    Raises:
        SprachbundError: the package is not installed, or its model cannot be had.
    """

    def __init__(self, model: str = MODEL, *, offline: bool = False) -> None:
        self.signature = comet_signature(model)
        package = _package()
        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # its tips would stand in the progress
        local = _on_disk(model)
        if local is None and offline:
            # the package goes on to an older server where the hub has nothing, even when told to stay on the disk
            from sprachbund.models.directory import locate

            local = _on_disk(str(locate(model, offline=True)))
        try:
            path = str(local or package.download_model(model))
            # Its encoder's settings are looked up by name: without the network, they have to be in the hub's cache.
            self._scorer = (
                package.load_from_checkpoint(path, local_files_only=local is not None).eval().half()
            )
        except Exception as error:  # the package raises bare ones
            raise SprachbundError(
                f"COMET's model {model} cannot be had ({error}); name its directory, with {_SETTINGS} and "
                f"{_CHECKPOINT}, and have its encoder (such as xlm-roberta-large) in the Hugging Face cache"
            ) from error

    def scores(
        self, transcripts: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]
    ) -> list[float]:
        """COMET of each of N translations, in percent; their mean is the corpus score. Given in several parts, the
        same texts get other last digits.

        Args:
            transcripts: what was said.
            hypotheses: what was written.
            references: what should have been written.
        """
        rows = [
            {"src": source, "mt": hypothesis, "ref": reference}
            for source, hypothesis, reference in zip(transcripts, hypotheses, references, strict=True)
        ]
        found = self._scorer.predict(rows, batch_size=_BATCH_SIZE, gpus=0, progress_bar=False)
        return [100.0 * float(score) for score in found.scores]


def comet_signature(model: str = MODEL) -> str:
    """Model, version of the package, precision. Raises SprachbundError when it is not installed."""
    _package()
    from importlib.metadata import version

    return f"COMET|model:{model}|version:{version('unbabel-comet')}|precision:float16"


def _on_disk(model: str) -> Path | None:
    """The checkpoint of a path; None for a name on the hub. Raises SprachbundError for a path without one."""
    place = Path(model)
    if not place.exists():
        if model.endswith(".ckpt") or model.startswith((".", "/", "~")):
            raise SprachbundError(f"COMET's model {model} does not exist; check the path")
        return None
    checkpoint = place / _CHECKPOINT if place.is_dir() else place
    for needed in (checkpoint, checkpoint.parent.parent / _SETTINGS):
        if not needed.is_file():
            raise SprachbundError(
                f"COMET's model {model} lacks {needed}; download its directory again, whole"
            )
    return checkpoint


def _package() -> Any:
    try:
        import comet
    except ImportError as error:
        if error.name != "comet":
            raise SprachbundError(
                f"COMET is installed and cannot be loaded ({error}); give it an environment of its own, with "
                "`pip install sprachbund[comet]`"
            ) from error
        raise SprachbundError(
            "COMET is not installed; install it with `pip install sprachbund[comet]`, or leave it out"
        ) from error
    if not hasattr(comet, "load_from_checkpoint"):
        raise SprachbundError(
            "the package `comet` here is another one; install COMET with `pip install unbabel-comet`"
        )
    return comet
