"""The reader of a model with token input: its units, and the speech encoder that these are made of.

`UnitReader` satisfies `sprachbund.models.tokens.text_input.Reader`. Shapes: N samples, S source tokens.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from sprachbund.errors import SprachbundError
from sprachbund.models.hub import locate
from sprachbund.models.tokens.config import ReadTokens, TokenConfig
from sprachbund.models.tokens.conformer import TokenConformer
from sprachbund.models.tokens.directory import Units, nearest
from sprachbund.models.tokens.sources import FeatureSource, encoder_hash, open_source
from sprachbund.models.tokens.strings import check_ratio, collapse, to_string, upsample
from sprachbund.models.tokens.vocabulary import REPEAT, JointVocabulary

ENCODER = "encoder"
"""Folder beside the units in which the speech encoder is looked for first."""


class UnitReader:
    """Reads with units.

    Args:
        units: units that were made.
        ratio: times that each piece of a text is repeated.
        mark_repeats: marks in the place of these repetitions.
        keep_repeats: read a unit for every frame.
        device: device of the speech encoder.

    Raises:
        SprachbundError: a ratio outside 1 to 6.
    """

    def __init__(
        self,
        units: Units,
        ratio: float,
        *,
        mark_repeats: bool = False,
        keep_repeats: bool = False,
        device: str = "cpu",
    ) -> None:
        check_ratio(ratio)
        self.units, self.ratio, self.keep_repeats, self.device = units, ratio, keep_repeats, device
        self._mark = REPEAT if mark_repeats else None

    @property
    def vocabulary(self) -> JointVocabulary:
        """Vocabulary of the tokens."""
        return self.units.vocabulary

    @property
    def directory(self) -> Path:
        """Directory of the units."""
        return self.units.directory

    def speech(self, samples: Sequence[np.ndarray]) -> list[list[int]]:
        """Tokens (S,) of each utterance, (N,) float32 at 16 kHz.

        Raises:
            SprachbundError: an utterance too short for a frame, or no encoder, or another one than the units are of.
        """
        strings = []
        for each, frames in zip(samples, self.source.features(samples), strict=True):
            if not len(frames):
                raise SprachbundError(
                    f"{len(each)} samples of speech are no frame of {self.source.info.name}; give longer speech"
                )
            labels = nearest(frames, self.units.centroids)
            strings.append(self.of_string(to_string(labels if self.keep_repeats else collapse(labels)[0])))
        return strings

    def text(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens (S,) of each text, made as long as speech."""
        return [self.of_text(text) for text in texts]

    def of_string(self, string: str, rng: np.random.Generator | None = None, alpha: float = 0.0) -> list[int]:
        """Tokens of units that are given as characters; drawn given `rng`, see `JointVocabulary`.

        Args:
            string: units as characters.
            rng: source of the draws; None takes the best segmentation.
            alpha: smoothing of the distribution over segmentations.
        """
        return self.vocabulary.encode_units(string, rng, alpha)

    def of_text(self, text: str, rng: np.random.Generator | None = None, alpha: float = 0.0) -> list[int]:
        """Tokens of a text, each piece repeated; drawn given `rng`, see `JointVocabulary`.

        Args:
            text: source text.
            rng: source of the draws; None takes the best segmentation.
            alpha: smoothing of the distribution over segmentations.
        """
        return upsample(self.vocabulary.encode_text(text, rng, alpha), self.ratio, mark=self._mark)

    @cached_property
    def source(self) -> FeatureSource:
        """The speech encoder, loaded when speech is first read: who translates text does without.

        Raises:
            SprachbundError: it is not there, or is another one than the units are of.
        """
        info = self.units.config.source
        copy = self.directory.parent / ENCODER
        try:
            directory = copy if copy.is_dir() else locate(info.name, offline=True)
        except SprachbundError as error:
            raise SprachbundError(
                f"the speech encoder that the units in {self.directory} are made of is missing ({error}); put a "
                f"copy of it, or a link to it, at {copy}"
            ) from error
        seen = encoder_hash(directory)
        if seen != info.hash:
            raise SprachbundError(
                f"{directory} is not the encoder that the units in {self.directory} are made of ({info.hash[:12]}; "
                f"this one is {seen[:12]}); put a copy of that one at {copy}"
            )
        return open_source(directory, info.layer, name=info.name, device=self.device, model_hash=seen)


# New models with their units.

C = TypeVar("C", bound=ReadTokens)


def reader_for(config: ReadTokens, units: Units) -> UnitReader:
    """Reads with units as a model wants it."""
    return UnitReader(units, config.ratio, mark_repeats=config.mark_repeats, keep_repeats=config.keep_repeats)


def named(config: C, units: Units) -> C:
    """The configuration with the name and the sizes of the units."""
    source = units.config.source
    window_s = min(config.max_window_s, source.window_s)
    known = {"units": units.identity.model_dump(), "frame_s": source.frame_s, "max_window_s": window_s}
    return config.model_copy(update=known)


def make(config: TokenConfig, units: Units) -> TokenConformer:
    """A model with random weights that reads with units, whose name and sizes go into its configuration."""
    complete = named(config, units)
    return TokenConformer(complete, reader_for(complete, units))
