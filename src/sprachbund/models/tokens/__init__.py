"""Models that read tokens: units of speech or pieces of text, translated by one and the same weights.

All that such a model needs to be loaded and run: `directory` (the units), `vocabulary`, `strings`, `sources` (features
of speech), `reader`, which joins them, and the families `conformer` and `mbart`. `sprachbund.units` makes units.
"""
