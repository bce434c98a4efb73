"""One model for speech translation and text translation, every weight shared (arXiv 2309.15826).

It reads tokens that stand for speech or for text and is not told which. Pieces of units are read and never written: its
output layers have no place for them. So it has two kinds of ids: those of the joint vocabulary, which it reads, and
those of the tokens that may be written, which are what every search sees; 0 is the blank in both. Shapes: B utterances,
R rows, S source tokens, T frames, U target tokens, D width, V joint vocabulary, W tokens that may be written.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sprachbund.data.batch import Batch
from sprachbund.models.family import Features, Memory, Target
from sprachbund.models.loss import Loss
from sprachbund.models.token_conformer.objective import token_loss
from sprachbund.models.token_conformer.reading import Reader
from sprachbund.models.token_conformer.reads_tokens import ReadsTokens
from sprachbund.models.token_conformer.shape import TokenConfig
from sprachbund.nn.conformer import valid_frames
from sprachbund.nn.ctc import CtcHead
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.token_encoder import Encoded, TokenEncoder
from sprachbund.nn.transducer import Transducer, TransducerShape


class TokenConformer(ReadsTokens):
    """Translator of tokens; satisfies `sprachbund.models.family.Family`, and translates text besides.

    Args:
        config: shape and languages.
        reader: turns speech and text into tokens.

    Attributes:
        written: the tokens that may be written.

    Raises:
        SprachbundError: a target language for which the vocabulary has no token.
    """

    name = "token_conformer"

    def __init__(self, config: TokenConfig, reader: Reader) -> None:
        super().__init__(config, reader)
        self.max_tokens = config.max_tokens
        self.frame_s = config.frame_s * 2**config.strides
        self.encoder = _encoder(config, len(reader.vocabulary))
        if config.soft_sharing:
            self.text_encoder = _encoder(config, len(reader.vocabulary))
        size = len(self.written)
        if config.has_decoder:
            self.decoder = TextDecoder(
                vocabulary_size=size,
                max_tokens=config.max_tokens,
                width=config.width,
                num_heads=config.num_heads,
                num_layers=config.num_decoder_layers,
                feed_forward_width=config.decoder_feed_forward_width,
                dropout=config.dropout,
                tied=config.tied,
            )
        if config.head == "transducer":
            self.transducer = Transducer(_transducer_shape(config, size))
        if config.head != "attention":
            self.ctc = CtcHead(config.width, size, len(config.target_languages))
        if config.source_ctc_weight:
            self.source_ctc_head = nn.Linear(config.width, size)
        self.language_head = nn.Linear(config.width, len(self.source_languages))

    @property
    def untrained(self) -> list[nn.Module]:
        """None: a loss of weight 0 still reaches its head, or the head is not built."""
        return []

    @property
    def has_unused_parameters(self) -> bool:
        """Text trains no CTC on transcripts, and with an encoder of its own nothing of that of speech."""
        return self.config.source_ctc_weight > 0 or self.config.soft_sharing

    @property
    def writes_by_frames(self) -> bool:
        """Whether text comes from a transducer."""
        return self.config.head == "transducer"

    @property
    def writes_by_ctc(self) -> bool:
        """Whether text comes from CTC alone."""
        return self.config.head == "ctc"

    @property
    def decoding_ctc_weight(self) -> float:
        """Of the CTC prefix score in joint search; 0 without a CTC head beside the decoder."""
        return self.config.decoding_ctc_weight if self.config.head == "ctc_attention" else 0.0

    def encode(self, features: Features) -> Memory:
        """Run the encoder; the states are (B, T, D)."""
        encoded = self.encode_tokens(features.values, features.num_frames)
        return Memory(states=encoded.states, num_frames=encoded.num_frames)

    def encode_tokens(self, tokens: Tensor, num_tokens: Tensor) -> Encoded:
        """Encode `tokens` (B, S), all of one kind where text has an encoder of its own."""
        if not self.config.soft_sharing:
            return self.encoder(tokens, num_tokens)
        spoken = torch.from_numpy(self.reader.vocabulary.is_unit).to(tokens.device)[tokens[:, 0]]
        return (self.encoder if bool(spoken.any()) else self.text_encoder)(tokens, num_tokens)

    def language_log_probs(self, memory: Memory) -> Tensor:
        """Log-probabilities (B, number of source languages) of the language spoken or read."""
        assert memory.num_frames is not None
        valid = valid_frames(memory.num_frames, memory.states.shape[1])[..., None]
        mean = (memory.states * valid).sum(1) / memory.num_frames[:, None]
        return self.language_head(mean).float().log_softmax(-1)

    def prompt(self, target: Target) -> list[int]:
        """The language token. Raises SprachbundError for a language it does not write."""
        return [self.language_tokens[self.target_place(target.language)]]

    def ctc_log_probs(self, memory: Memory, targets: Sequence[Sequence[Target]]) -> Tensor:
        """(R, T, W) of the CTC head for the targets of each memory, in order; language tokens and the end left out."""
        flat = [target for group in targets for target in group]
        places = torch.tensor([self.target_place(t.language) for t in flat], device=memory.states.device)
        log_probs = self.ctc(memory.states.repeat_interleave(len(targets[0]), 0), places)
        silent = self.suppressed(flat[0]).to(log_probs.device, copy=True)
        silent[0], silent[self.end_token] = False, True
        return log_probs.masked_fill(silent, -torch.inf)

    def forward(self, batch: Batch) -> Loss:
        """The loss, as wrappers that watch `forward` expect it."""
        return self.loss(batch)

    def loss(self, batch: Batch) -> Loss:
        """See `objective.token_loss`."""
        return token_loss(self, batch)

    def language_places(self, tokens: Tensor) -> Tensor:
        """Places (R,) among the target languages of language tokens (R,)."""
        known = torch.tensor(self.language_tokens, device=tokens.device)
        return (tokens[:, None] == known).int().argmax(1)


def _encoder(config: TokenConfig, vocabulary_size: int) -> TokenEncoder:
    names = (
        "embedding_width",
        "width",
        "num_heads",
        "num_lower",
        "num_upper",
        "feed_forward_width",
        "kernel_size",
        "strides",
        "block",
        "dropout",
        "time_masks",
        "max_mask_share",
    )
    sizes: dict[str, Any] = {name: getattr(config, name) for name in names}
    return TokenEncoder(vocabulary_size=vocabulary_size, **sizes)


def _transducer_shape(config: TokenConfig, vocabulary_size: int) -> TransducerShape:
    return TransducerShape(
        vocabulary_size=vocabulary_size,
        encoder_width=config.width,
        prediction_width=config.prediction_width,
        prediction_layers=1,
        joint_width=config.joint_width,
        dropout=config.dropout,
    )
