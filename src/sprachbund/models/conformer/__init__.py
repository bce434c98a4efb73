"""Our own family: a conformer encoder with an attention decoder and a CTC head, any language to any language."""

from sprachbund.models.conformer.config import ConformerConfig, ConformerShape, StreamingPart, TransducerPart
from sprachbund.models.conformer.model import Conformer

__all__ = ["Conformer", "ConformerConfig", "ConformerShape", "StreamingPart", "TransducerPart"]
