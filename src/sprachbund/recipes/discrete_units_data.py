"""Data of the comparison of discrete units: the corpus as units, and parallel text from outside."""

import random
from collections.abc import Callable
from pathlib import Path

from sprachbund.data.phrasebook import LANGUAGES, draw, render, split_of
from sprachbund.errors import SprachbundError
from sprachbund.models.directory import locate
from sprachbund.recipes.discrete_units_options import Arm, DiscreteUnitsRecipe
from sprachbund.recipes.unit_translator import BitextPart
from sprachbund.units.encode import Encoding, encode
from sprachbund.units.files import encoder_hash, write_whole
from sprachbund.units.fit import Fit, make_units
from sprachbund.units.jobs import Extraction
from sprachbund.units.options import FitOptions, VocabularyOptions

Report = Callable[[str], None]


def units_of(recipe: DiscreteUnitsRecipe, arm: Arm, directory: Path, report: Report) -> Path:
    """Units with the vocabulary of an arm, made where they are not there yet; k-means is the same for all."""
    vocabulary = vocabulary_of(recipe, arm)
    out = directory / "units" / f"{vocabulary.form}-{vocabulary.unit_pieces}"
    if not (out / "units.json").exists():
        report(f"units, {vocabulary.form}, {vocabulary.unit_pieces} pieces")
    outside = {"external", "start"} & {one.text for one in recipe.all_arms().values()}
    texts = bitext_files(recipe, directory) if outside else ()
    fit = Fit(
        extraction=_extraction(recipe),
        data=(recipe.data / "train",),
        out=out,
        options=FitOptions(
            kmeans=recipe.units.kmeans,
            vocabulary=vocabulary,
            share=recipe.units.share,
            languages=recipe.sources,
            text_languages=tuple(sorted({*recipe.sources, recipe.target})),
        ),
        texts=texts,
    )
    make_units(fit)
    return out


def vocabulary_of(recipe: DiscreteUnitsRecipe, arm: Arm) -> VocabularyOptions:
    """The vocabulary of an arm. Raises SprachbundError for one that cannot hold the clusters."""
    units = recipe.units
    options = VocabularyOptions(
        form=arm.form or units.form,
        unit_pieces=units.unit_pieces if arm.unit_pieces is None else arm.unit_pieces,
        text_pieces=units.text_pieces,
    )
    options.check(units.kmeans.clusters)
    return options


def encoded(recipe: DiscreteUnitsRecipe, part: str, directory: Path, report: Report) -> Path:
    """A part of the corpus as units, found where they are not there yet; vocabularies do not change them."""
    out = directory / "encoded" / part
    if not (out / "manifest.json").exists():
        report(f"units of {recipe.data / part}")
    base = units_of(recipe, Arm(head="attention", text="none"), directory, report)
    encode(
        Encoding(
            units=base,
            extraction=_extraction(recipe),
            data=recipe.data / part,
            out=out,
            languages=recipe.sources,
        )
    )
    return out


def bitext_files(recipe: DiscreteUnitsRecipe, directory: Path) -> tuple[Path, ...]:
    """Tables of parallel text, one for each source language; drawn from the phrasebook where none are given."""
    if recipe.bitext:
        if len(recipe.bitext) != len(recipe.sources):
            raise SprachbundError(
                f"{len(recipe.bitext)} tables of parallel text for {len(recipe.sources)} source languages; name one "
                "for each"
            )
        return recipe.bitext
    paths = tuple(directory / "bitext" / f"{source}-{recipe.target}.tsv" for source in recipe.sources)
    for path, source in zip(paths, recipe.sources, strict=True):
        if not path.exists() and recipe.external_pairs:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, phrases(source, recipe.target, recipe.external_pairs).encode())
    return paths if recipe.external_pairs else ()


def bitext_parts(recipe: DiscreteUnitsRecipe, directory: Path) -> tuple[BitextPart, ...]:
    """The same as a run wants them."""
    files = bitext_files(recipe, directory)
    if not files:
        raise SprachbundError("there is no parallel text: give bitext, or external_pairs to draw some")
    return tuple(
        BitextPart(paths=(path,), source=source, target=recipe.target)
        for path, source in zip(files, recipe.sources, strict=True)
    )


def phrases(source: str, target: str, count: int) -> str:
    """A table of so many distinct meanings of the phrasebook, none of them held out, in two languages."""
    if unknown := sorted({source, target} - set(LANGUAGES)):
        raise SprachbundError(
            f"the phrasebook has no {', '.join(unknown)}; give parallel text with bitext, or take of "
            f"{' '.join(LANGUAGES)}"
        )
    rng, seen = random.Random(f"bitext/{source}/{target}"), set[str]()
    lines = [f"{source}\t{target}"]
    while len(lines) <= count:
        meaning = draw(rng)
        pair = f"{render(meaning, source, rng)}\t{render(meaning, target, rng)}"
        if split_of(meaning) == "train" and pair not in seen:
            seen.add(pair)
            lines.append(pair)
    return "\n".join(lines) + "\n"


def _extraction(recipe: DiscreteUnitsRecipe) -> Extraction:
    directory = locate(recipe.units.encoder)
    name = str(directory.resolve()) if Path(recipe.units.encoder).is_dir() else recipe.units.encoder
    return Extraction(directory=directory, layer=recipe.units.layer, name=name, hash=encoder_hash(directory))
