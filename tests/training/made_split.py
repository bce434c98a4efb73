"""The model of `tests.training.made`, split by language."""

from sprachbund.models.conformer import Conformer
from sprachbund.models.sharing_plan import SharingPlan
from sprachbund.research.gradient_sharing.surgery import apply_plan
from tests.training import made

ENCODER = "encoder.layers.1.feed_forward_out"
DECODER = "decoder.layers.0.feed_forward"


def make_split_model() -> Conformer:
    """A branch for each language, in the encoder and in the decoder."""
    split = {"groups": [["de"], ["en"]], "shared_ratio": 0.5, "start": "random"}
    splits = [{**split, "module": ENCODER}, {**split, "module": DECODER, "side": "target"}]
    model = made.make_model()
    apply_plan(model, SharingPlan.model_validate({"splits": splits}))
    return model
