"""Public speech translation corpora, from a copy as people download it: one file for each, or each family.

`PREPARATIONS` names them; each has a description, a licence and a homepage, and prepares its corpus.
"""

from sprachbund.corpora.public import common_voice, fisher, fleurs, iwslt, ntuml, talkbank, talks
from sprachbund.corpora.public.items import CorpusOptions
from sprachbund.corpora.public.preparation import PartSummary, Preparation, Summary

PREPARATIONS: dict[str, Preparation] = {
    preparation.name: preparation
    for preparation in (
        common_voice.COVOST,
        fleurs.FLEURS,
        *talks.PREPARATIONS,
        talks.EUROPARL_ST,
        common_voice.CVSS,
        iwslt.PREPARATION,
        *iwslt.PREPARATIONS,
        fisher.PREPARATION,
        ntuml.PREPARATION,
        fleurs.CS_FLEURS,
        talkbank.PREPARATION,
    )
}
"""Preparations by the name that `data prepare` takes."""

__all__ = ["PREPARATIONS", "CorpusOptions", "PartSummary", "Preparation", "Summary"]
