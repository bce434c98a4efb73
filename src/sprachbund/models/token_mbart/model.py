"""One mBART for speech translation and text translation: its own pieces of text, and units as further pieces.

Rows of text are mBART's own and serve input and output; those of units are new, are read only, and are a parameter of
their own, so that they can learn at a rate of their own (arXiv 2309.15826; 2008.00401). As in mBART-50 a source begins
with the token of its language and a target with the end and the token of its language. Where the source language is
not known, it is told by a layer on the mean of the embedded tokens, before the encoder reads them. Shapes: B
utterances, R rows, S source tokens, D width, L source languages, W tokens that may be written.
"""

import torch
from torch import Tensor, nn

from sprachbund.data.batch import NO_LANGUAGE, Batch
from sprachbund.errors import SprachbundError
from sprachbund.models.family import Features, Memory, Target
from sprachbund.models.loss import Loss
from sprachbund.models.token_conformer.objective import decoder_loss, language_loss
from sprachbund.models.token_conformer.reading import Reader
from sprachbund.models.token_conformer.reads_tokens import ReadsTokens
from sprachbund.models.token_mbart.parts import MbartDecoder, MbartEncoder, embedding
from sprachbund.models.token_mbart.shape import MbartConfig
from sprachbund.nn.conformer import valid_frames


class TokenMbart(ReadsTokens):
    """Translator of tokens; satisfies `sprachbund.models.family.Family`, and translates text besides.

    Args:
        config: shape, languages and units.
        reader: turns speech and text into tokens.

    Raises:
        SprachbundError: a language for which the vocabulary has no token.
    """

    name = "token_mbart"
    _is_unit: Tensor
    _places: Tensor
    _source_tokens: Tensor

    def __init__(self, config: MbartConfig, reader: Reader) -> None:
        super().__init__(config, reader)
        self.max_tokens, self.frame_s = config.max_tokens, config.frame_s
        self.encoder = MbartEncoder(config)
        self.decoder = MbartDecoder(len(self.written), config)
        is_unit = torch.from_numpy(reader.vocabulary.is_unit.copy())
        self.unit_embedding = embedding(int(is_unit.sum()), config)
        self.language_head = nn.Linear(config.width, len(self.source_languages))
        places = torch.where(is_unit, is_unit.cumsum(0), (~is_unit).cumsum(0)) - 1
        sources = torch.from_numpy(self.written.ids)[
            [self.written.language(t) for t in self.source_languages]
        ]
        for name, known in (("_is_unit", is_unit), ("_places", places), ("_source_tokens", sources)):
            self.register_buffer(name, known, persistent=False)

    def encode(self, features: Features) -> Memory:
        """Run the encoder; languages that are not given are found out. The states are (B, S + 1, D)."""
        log_probs = self.source_log_probs(features.values, features.num_frames)
        found, given = log_probs.argmax(-1), features.source_language
        language = found if given is None else torch.where(given == NO_LANGUAGE, found, given)
        return self._encode(features.values, features.num_frames, language, log_probs)

    def source_log_probs(self, tokens: Tensor, num_tokens: Tensor) -> Tensor:
        """Log-probabilities (B, L) of the language of tokens (B, S); the embedding learns nothing of it."""
        embedded = self.embed(tokens).detach()
        valid = valid_frames(num_tokens, tokens.shape[1])[..., None]
        mean = (embedded * valid).sum(1) / num_tokens[:, None]
        return self.language_head(mean).float().log_softmax(-1)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embedded (B, S, D) tokens (B, S) of the joint vocabulary."""
        is_unit, places = self._is_unit[tokens], self._places[tokens]
        known = self.decoder.embedding(places.masked_fill(is_unit, 0))
        new = self.unit_embedding(places.masked_fill(~is_unit, 0))
        return torch.where(is_unit[..., None], new, known)

    def language_log_probs(self, memory: Memory) -> Tensor:
        """Log-probabilities (B, L) of the language spoken or read."""
        assert memory.language_log_probs is not None
        return memory.language_log_probs

    def prompt(self, target: Target) -> list[int]:
        """The end and the language token. Raises SprachbundError for a language it does not write."""
        return [self.end_token, self.language_tokens[self.target_place(target.language)]]

    def forward(self, batch: Batch) -> Loss:
        """The loss, as wrappers that watch `forward` expect it."""
        return self.loss(batch)

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the targets, and of the source languages."""
        tokens, num_tokens = batch.features, batch.num_frames
        log_probs = self.source_log_probs(tokens, num_tokens)
        known = torch.where(batch.source_language == NO_LANGUAGE, log_probs.argmax(-1), batch.source_language)
        memory = self._encode(tokens, num_tokens, known, log_probs)
        prompts = [[self.end_token, token] for token in batch.target_language.tolist()]
        main = decoder_loss(self, batch, memory, prompts).sum()
        language = language_loss(log_probs, batch)
        return Loss(
            total=main + self.config.language_weight * language,
            attention=main,
            ctc=main.new_zeros(()),
            language=language.detach(),
            num_tokens=int(batch.num_targets.sum()),
            num_transcript=0,
        )

    def _encode(self, tokens: Tensor, num_tokens: Tensor, language: Tensor, log_probs: Tensor) -> Memory:
        if tokens.shape[1] > self.config.max_source_tokens:
            raise SprachbundError(
                f"a source has {tokens.shape[1]} tokens and mBART reads {self.config.max_source_tokens}; give shorter "
                "texts or speech"
            )
        whole = torch.cat([self._source_tokens[language][:, None], tokens], dim=1)
        states = self.encoder(self.embed(whole), num_tokens + 1)
        return Memory(
            states=states, num_frames=num_tokens + 1, source_language=language, language_log_probs=log_probs
        )
