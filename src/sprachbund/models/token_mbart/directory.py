"""mBARTs that read tokens as directories, which are those of conformers with token input but for the family's name."""

from sprachbund.models.token_conformer.directory import read_config, save

__all__ = ["read_config", "save"]
