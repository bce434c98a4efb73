"""Our own family: a conformer encoder with an attention decoder and a CTC head, any language to any language."""

from sprachbund.models.conformer.model import Conformer
from sprachbund.models.conformer.shape import ConformerConfig, ConformerShape, StreamingPart, TransducerPart

__all__ = ["Conformer", "ConformerConfig", "ConformerShape", "StreamingPart", "TransducerPart"]
