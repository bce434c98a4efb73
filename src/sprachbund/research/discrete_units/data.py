"""Data of the comparison of discrete units: the corpus as units, and parallel text from outside."""

import hashlib
import random
from pathlib import Path

from sprachbund.corpora.phrasebook import LANGUAGES, draw, render, split_of
from sprachbund.data.bitext import read_bitext
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.models.io import locate
from sprachbund.models.tokens.sources import encoder_hash
from sprachbund.models.tokens.unit_options import FitOptions, VocabularyOptions
from sprachbund.research.discrete_units.options import OUTSIDE, DiscreteUnitsRecipe, UnitsArm
from sprachbund.training.unit_translator import BitextPart
from sprachbund.units.dataset import within_hours
from sprachbund.units.encoded import EncodedCorpus, Encoding, Extraction, encode
from sprachbund.units.fit import Fit, make_units
from sprachbund.util.computing import Computing
from sprachbund.util.files import write_text
from sprachbund.util.progress import Report

_PLAIN = UnitsArm(head="attention", text="none")
"""An arm with the recipe's own vocabulary."""


def make_data(recipe: DiscreteUnitsRecipe, directory: Path, report: Report) -> None:
    """Make the data that models are trained on, where they are missing: parallel text, units, the corpus as units.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.
        report: called with a line for every step.

    Raises:
        SprachbundError: data that are not there or do not fit, or parallel text or hours that there are not.
    """
    arms = recipe.all_arms.values()
    texts = {arm.text for arm in arms}
    if OUTSIDE & texts:
        bitext_parts(recipe, directory)
    for copies in {arm.planted_copies for arm in arms if arm.text == "planted"}:
        planted_parts(recipe, directory, copies)
    if "shuffled" in texts:
        shuffled_parts(recipe, directory)
    for arm in {units_directory(recipe, arm, directory): arm for arm in (_PLAIN, *arms)}.values():
        _make_units(recipe, arm, directory, report)
    train, _ = (_encode(recipe, part, directory, report) for part in ("train", "dev"))
    for hours in {arm.hours for arm in arms}:
        within_hours(train, recipe.sources, hours)


def units_directory(recipe: DiscreteUnitsRecipe, arm: UnitsArm, directory: Path) -> Path:
    """Directory of the units with the vocabulary of an arm.

    Args:
        recipe: options of the comparison.
        arm: arm of the comparison.
        directory: folder of all runs.
    """
    vocabulary = vocabulary_of(recipe, arm)
    return directory / "units" / f"{vocabulary.form}-{vocabulary.unit_pieces}"


def encoded_directory(part: str, directory: Path) -> Path:
    """Directory of a part of the corpus as units; vocabularies do not change them."""
    return directory / "encoded" / part


def _make_units(recipe: DiscreteUnitsRecipe, arm: UnitsArm, directory: Path, report: Report) -> None:
    """Units with the vocabulary of an arm; k-means is the same for all."""
    out, vocabulary = units_directory(recipe, arm, directory), vocabulary_of(recipe, arm)
    if not (out / "units.json").exists():
        report(f"units, {vocabulary.form}, {vocabulary.unit_pieces} pieces")
    outside = OUTSIDE & {one.text for one in recipe.all_arms.values()}
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
        texts=bitext_files(recipe, directory) if outside else (),
        computing=Computing(workers=recipe.workers),
    )
    make_units(fit)


def vocabulary_of(recipe: DiscreteUnitsRecipe, arm: UnitsArm) -> VocabularyOptions:
    """The vocabulary of an arm. Raises SprachbundError for one that cannot hold the clusters."""
    units = recipe.units
    options = VocabularyOptions(
        form=arm.form or units.form,
        unit_pieces=units.unit_pieces if arm.unit_pieces is None else arm.unit_pieces,
        text_pieces=units.text_pieces,
    )
    options.check(units.kmeans.clusters)
    return options


def _encode(recipe: DiscreteUnitsRecipe, part: str, directory: Path, report: Report) -> EncodedCorpus:
    """A part of the corpus as units."""
    out = encoded_directory(part, directory)
    if not (out / "manifest.json").exists():
        report(f"units of {recipe.data / part}")
    return encode(
        Encoding(
            units=units_directory(recipe, _PLAIN, directory),
            extraction=_extraction(recipe),
            data=recipe.data / part,
            out=out,
            languages=recipe.sources,
            computing=Computing(workers=recipe.workers),
        )
    )


def scored_limit(recipe: DiscreteUnitsRecipe) -> int | None:
    """Utterances of the test corpus, of all languages, among which there are as many of each source as are wanted."""
    if recipe.test_utterances is None:
        return None
    languages = Manifest(recipe.data / "test").languages.tolist()
    least = min(languages.count(source) for source in recipe.sources)
    if not least:
        raise SprachbundError(
            f"{recipe.data / 'test'} holds no speech in some of {' '.join(recipe.sources)}; name other sources"
        )
    return -(-recipe.test_utterances * len(languages) // least)


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
            write_text(path, phrases(source, recipe.target, recipe.external_pairs))
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


PLANTED, OTHERS = "planted half", "other half"
"""The test utterances whose sentences are planted in text from outside by the positive control, and the others."""


def halves(recipe: DiscreteUnitsRecipe) -> dict[str, frozenset[str]]:
    """Ids of the test utterances of either half; utterances with one translation are in one half.

    Args:
        recipe: options of the comparison.
    """
    ids: dict[str, set[str]] = {PLANTED: set(), OTHERS: set()}
    for said in Manifest(recipe.data / "test"):
        text = said.text_in(recipe.target)
        if said.language in recipe.sources and text:
            ids[half_of(text)].add(said.id)
    return {half: frozenset(own) for half, own in ids.items()}


def half_of(translation: str) -> str:
    """The half, `PLANTED` or `OTHERS`, of a test utterance with this translation."""
    return (PLANTED, OTHERS)[hashlib.sha256(translation.encode()).digest()[0] % 2]


def planted_parts(recipe: DiscreteUnitsRecipe, directory: Path, copies: int) -> tuple[BitextPart, ...]:
    """Tables with the test sentences of the first half, one for each source language; those that are there are kept.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.
        copies: how often each sentence is in its table.
    """
    target = recipe.target
    often = "" if copies == 1 else f"-{copies}"
    parts = tuple(
        BitextPart(
            paths=(directory / "bitext" / f"planted{often}-{source}-{target}.tsv",),
            source=source,
            target=target,
        )
        for source in recipe.sources
    )
    if not all(part.paths[0].exists() for part in parts):
        ids = halves(recipe)[PLANTED]
        planted = [said for said in Manifest(recipe.data / "test") if said.id in ids]
        for part in parts:
            texts = [
                (u.text_in(part.source), u.text_in(target)) for u in planted if u.language == part.source
            ]
            pairs = {f"{source}\t{translation}" for source, translation in texts if source}
            lines = (f"{part.source}\t{target}", *copies * sorted(pairs))
            write_text(part.paths[0], "\n".join(lines) + "\n")
    return parts


def shuffled_parts(recipe: DiscreteUnitsRecipe, directory: Path) -> tuple[BitextPart, ...]:
    """The tables of parallel text with every sentence beside the translation of another; those that are there are kept.

    Args:
        recipe: options of the comparison.
        directory: folder of all runs.

    Raises:
        SprachbundError: a table without two different translations.
    """
    parts = []
    for part in bitext_parts(recipe, directory):
        path = directory / "bitext" / f"shuffled-{part.source}-{part.target}.tsv"
        if not path.exists():
            pairs = list(read_bitext(part.paths, part.source, part.target, skip_bad=part.skip_bad).pairs)
            if len({pair.target for pair in pairs}) < 2:
                raise SprachbundError(
                    f"{part.paths[0]} has one translation alone ({len(pairs)} pairs), so that no sentence can have "
                    "that of another; give more parallel text, or leave shuffled_hours out"
                )
            random.Random(f"shuffled/{part.source}/{part.target}").shuffle(pairs)
            # In random order, each has the translation of the one before it, so that no pair stays together.
            others = [pairs[number - 1].target for number in range(len(pairs))]
            lines = [f"{pair.source}\t{other}" for pair, other in zip(pairs, others, strict=True)]
            write_text(path, "\n".join((f"{part.source}\t{part.target}", *lines)) + "\n")
        parts.append(part.model_copy(update={"paths": (path,)}))
    return tuple(parts)


def phrases(source: str, target: str, count: int) -> str:
    """A table of so many distinct meanings of the phrasebook, none of them held out, in two languages.

    Args:
        source: BCP-47 tag of the source texts.
        target: BCP-47 tag of the translations.
        count: number of meanings.
    """
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
