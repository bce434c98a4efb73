"""Our own family: a conformer encoder with an attention decoder and a CTC head, any language to any language."""

from sprachbund.models.conformer.model import Conformer, ConformerConfig, ConformerShape

__all__ = ["Conformer", "ConformerConfig", "ConformerShape"]
