"""Public speech translation corpora, from a copy as people download it: one file for each, or each family.

`PREPARATIONS` names them; each says what it is, its licence, where it is had, and prepares it.
"""

from sprachbund.data.corpora import (
    covost,
    cs_fleurs,
    cvss,
    europarl_st,
    fisher,
    fleurs,
    iwslt_aeb,
    iwslt_small,
    miami,
    ntuml,
    talks,
)
from sprachbund.data.corpora.items import CorpusOptions
from sprachbund.data.corpora.preparation import PartSummary, Preparation, Summary

PREPARATIONS: dict[str, Preparation] = {
    preparation.name: preparation
    for preparation in (
        covost.PREPARATION,
        fleurs.PREPARATION,
        *talks.PREPARATIONS,
        europarl_st.PREPARATION,
        cvss.PREPARATION,
        iwslt_aeb.PREPARATION,
        *iwslt_small.PREPARATIONS,
        fisher.PREPARATION,
        ntuml.PREPARATION,
        cs_fleurs.PREPARATION,
        miami.PREPARATION,
    )
}
"""By the name that `data prepare` takes."""

__all__ = ["PREPARATIONS", "CorpusOptions", "PartSummary", "Preparation", "Summary"]
