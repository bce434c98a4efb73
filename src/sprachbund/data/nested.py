"""Less and less of the same data: parts that contain each other, so that scales differ in nothing but their size.

Every corpus is shuffled once by a seed, and of each as much is taken from the front as its share of all hours asks for
(arXiv 2606.24169, section 3).
"""

from collections.abc import Sequence

import numpy as np

from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError


def nested(manifests: Sequence[Manifest], hours: float, seed: int = 0) -> list[Manifest]:
    """So many hours of several corpora together, in proportion to their own; fewer hours are part of more.

    A corpus gives the utterances that end within its part, so all together are at most `hours`, and less than that by
    at most one utterance of each.

    Args:
        manifests: the corpora.
        hours: wanted, above 0 and at most what there is.
        seed: of the order; the same for all scales that are to be nested.

    Raises:
        SprachbundError: for hours that there are not, or so few that nothing is left of a corpus.
    """
    own = [float(manifest.durations_s.astype(np.float64).sum()) / 3600 for manifest in manifests]
    whole = sum(own)
    if not 0 < hours <= whole * (1 + 1e-9):
        names = ", ".join(str(manifest.directory) for manifest in manifests)
        raise SprachbundError(f"{hours:g} hours are wanted of {names}; give more than 0, at most {whole:.3f}")
    return [
        _front(manifest, 3600 * hours * part / whole, seed)
        for manifest, part in zip(manifests, own, strict=True)
    ]


def _front(manifest: Manifest, seconds: float, seed: int) -> Manifest:
    """The first utterances in the shuffled order, as many as fit."""
    order = np.random.default_rng([seed, len(manifest)]).permutation(len(manifest))
    ends_s = np.cumsum(manifest.durations_s[order].astype(np.float64))
    chosen = order[ends_s <= seconds * (1 + 1e-9)]
    if not len(chosen) and len(manifest):
        raise SprachbundError(
            f"{manifest.directory} has no utterance as short as {seconds:.1f} s to begin with; ask for more hours"
        )
    return manifest.only(chosen)
