"""COMET, a learned metric, for those who have it installed; it is large and needs its model on disk."""

from collections.abc import Sequence
from typing import Any

from sprachbund.errors import SprachbundError

MODEL = "Unbabel/wmt22-comet-da"


def comet_scores(
    transcripts: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    model: str = MODEL,
    batch_size: int = 16,
) -> list[float]:
    """COMET of each of N translations, in percent; their mean is the corpus score.

    Args:
        transcripts: what was said.
        hypotheses: what was written.
        references: what should have been written.
        model: name on the Hugging Face hub, or path of a checkpoint.
        batch_size: texts at a time.

    Raises:
        SprachbundError: when the package is not installed or its model cannot be had.
    """
    comet = _package()
    try:
        path = model if model.endswith(".ckpt") else comet.download_model(model)
        scorer = comet.load_from_checkpoint(path)
    except (OSError, KeyError, ValueError) as error:
        raise SprachbundError(
            f"COMET's model {model} cannot be had ({error}); name a .ckpt on disk"
        ) from error
    rows = [
        {"src": source, "mt": hypothesis, "ref": reference}
        for source, hypothesis, reference in zip(transcripts, hypotheses, references, strict=True)
    ]
    found = scorer.predict(rows, batch_size=batch_size, gpus=0, progress_bar=False)
    return [100.0 * float(score) for score in found.scores]


def comet_signature(model: str = MODEL) -> str:
    """Model and version of the package. Raises SprachbundError when it is not installed."""
    _package()
    from importlib.metadata import version

    return f"COMET|model:{model}|version:{version('unbabel-comet')}"


def _package() -> Any:
    try:
        import comet
    except ImportError as error:
        raise SprachbundError(
            "COMET is not installed; install it with `pip install sprachbund[comet]`, or leave it out"
        ) from error
    return comet
