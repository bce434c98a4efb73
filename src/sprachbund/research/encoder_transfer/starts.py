"""The starts of the transfer study: models trained first, and what is spliced of them.

All starts have decoder, joint network and tokenizer of one model, to the last bit, and this is checked before any cell.
"""

import hashlib
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import RootModel
from torch import Tensor

from sprachbund.data.manifest import Manifest
from sprachbund.models.conformer import Conformer
from sprachbund.models.conformer.extension import MEAN, only_losses
from sprachbund.models.conformer.io import (
    TOKENIZER_FILE,
    TRANSCRIPT_TOKENIZER_FILE,
    WEIGHTS_FILE,
    load,
    read_config,
    save,
)
from sprachbund.research.encoder_transfer.options import EncoderTransferRecipe
from sprachbund.research.encoder_transfer.splice import check_encoders_alone, splice
from sprachbund.research.tasks import Tasks
from sprachbund.text.tokenizer import Tokenizer
from sprachbund.training.checkpoint import LOG_FILE, forget_run, run_log
from sprachbund.training.data_checks import text_warnings
from sprachbund.training.options import TrainingOptions
from sprachbund.training.recipe import CardRecipe, DataPart, ExampleRecipe, FineTuning, TranslatorRecipe
from sprachbund.training.translator import run as train_translator
from sprachbund.util import jobs as work
from sprachbund.util.files import copy_file, read_object, validate, write_json
from sprachbund.util.progress import Report

PARTS_FILE = "parts.json"
_SEED_OF_RANDOM = 0


def make_starts(
    recipe: EncoderTransferRecipe,
    out: Path,
    *,
    ray_address: str | None,
    gpus: int,
    report: Report,
) -> None:
    """Train what has to be trained first, and make every start of the grid; what is there stays.

    Args:
        recipe: options of the study.
        out: folder of the study.
        ray_address: address of a Ray cluster; None for this machine.
        gpus: GPUs of each training.
        report: called with a line for every step.

    Raises:
        SprachbundError: checkpoints whose encoders have other shapes.
    """
    waves = recipe.waves()
    if any(recipe.pretrained[name].start is None for name in chain(*waves)):
        fit_tokenizers(recipe, out)
    for trained in waves:
        paths = tuple(pretrained_model(recipe, out, name) / WEIGHTS_FILE for name in trained)
        if missing := [name for name, path in zip(trained, paths, strict=True) if not path.exists()]:
            logs = out / "pretrained" / "NAME" / LOG_FILE
            report(f"training first: {', '.join(missing)}; progress is in {logs}")
        tasks = Tasks(paths=paths, make=partial(_pretrain, recipe, out, trained), gpus=gpus)
        work.run(tasks, workers=min(recipe.workers, len(trained)), ray_address=ray_address)
        for name in trained:
            forget_run(out / "pretrained" / name)
    missing = [name for name in recipe.grid.starts if not (start_model(out, name) / WEIGHTS_FILE).exists()]
    if missing:
        _splice(recipe, out, missing)
        _say_unknown(recipe, out, missing[0], report)


def translator(
    recipe: EncoderTransferRecipe,
    spoken: Iterable[str],
    training: TrainingOptions,
    *,
    known: Iterable[str],
    **changes: Any,
) -> TranslatorRecipe:
    """A training on the speech of some languages.

    Args:
        recipe: recipe of the study.
        spoken: languages of the speech.
        training: training options.
        known: languages that may be spoken and written.
        changes: changes of the `TranslatorRecipe`.
    """
    wanted = set(spoken)

    def part(name: str) -> DataPart:
        there = set(Manifest(recipe.data / name).languages.tolist())
        return DataPart(path=recipe.data / name, shares=dict.fromkeys(sorted(there - wanted), 0.0))

    drawn: dict[str, Any] = {"rows_per_utterance": 1, "same_language": 1.0}
    if recipe.task == "translations":
        drawn = {"rows_per_utterance": 1, "targets": (recipe.into,)}
    return TranslatorRecipe(
        languages=tuple(sorted(known)),
        train=(part("train"),),
        dev=(part("dev"),),
        bits=32,
        examples=ExampleRecipe.model_validate(recipe.examples.model_dump() | drawn),
        training=training,
        card=CardRecipe(name="encoder-transfer"),
        **changes,
    )


def pretrained_model(recipe: EncoderTransferRecipe, out: Path, name: str) -> Path:
    """Model directory of one that encoder layers are taken from.

    Args:
        recipe: options of the study.
        out: folder of the study.
        name: name of the pretrained model in the recipe.
    """
    return recipe.pretrained[name].checkpoint or out / "pretrained" / name / "model"


def start_model(out: Path, name: str) -> Path:
    """Model directory of a start."""
    return out / "starts" / name


class _Parts(RootModel[dict[str, str]]):
    """Part of a model to its digest."""


def start_parts(out: Path, name: str) -> dict[str, str]:
    """Return the digests of the parts of a start."""
    path = start_model(out, name) / PARTS_FILE
    advice = f"delete {path.parent}, and the same command makes the start again"
    return validate(_Parts, read_object(path, advice=advice), str(path), advice=advice).root


def fit_tokenizers(recipe: EncoderTransferRecipe, out: Path) -> None:
    """Fit the tokenizers on texts of all languages, which the ones trained first need not have heard."""
    wanted = {
        TOKENIZER_FILE: (recipe.vocabulary_size, recipe.languages),
        TRANSCRIPT_TOKENIZER_FILE: (recipe.transcript_vocabulary_size, ()),
    }
    folder = out / "pretrained"
    if all((folder / name).exists() for name in wanted):
        return
    texts = list(_texts(recipe))
    folder.mkdir(parents=True, exist_ok=True)
    for name, (size, languages) in wanted.items():
        Tokenizer.train(texts, languages, size).save(folder / name)


def _texts(recipe: EncoderTransferRecipe) -> Iterator[str]:
    """Texts in the languages of the study, in an order that is drawn once."""
    manifest = Manifest(recipe.data / "train")
    left = recipe.tokenizer_texts
    for index in np.random.default_rng(recipe.data_seed).permutation(len(manifest)):
        utterance = manifest[int(index)]
        for tag in recipe.languages:
            if (text := utterance.text_in(tag)) and left > 0:
                left -= 1
                yield text
        if left == 0:
            return


def trained_further(recipe: EncoderTransferRecipe, start: Path, languages: Iterable[str]) -> dict[str, Any]:
    """Return the changes of a `TranslatorRecipe` that train a model further.

    A checkpoint has its sizes, features and pieces; losses are the recipe's. A language that it does not know is added,
    and one that writes what is spoken is given the language of translations.

    Args:
        recipe: options of the study.
        start: model directory.
        languages: languages that are spoken and written.
    """
    config = read_config(start)
    new = {tag: MEAN for tag in dict.fromkeys(languages) if tag not in config.source_languages}
    changes: dict[str, Any] = {"new_languages": new} if new else {}
    part = config.transducer
    if recipe.task == "translations" and part is not None and not part.prompted:
        changes["prompt"] = "wanted"
    return {"start": start, "model": only_losses(recipe.shape), "fine_tuning": FineTuning(**changes)}


def _pretrain(recipe: EncoderTransferRecipe, out: Path, names: list[str], number: int) -> None:
    name = names[number]
    folder = out / "pretrained" / name
    folder.mkdir(parents=True, exist_ok=True)
    one = recipe.pretrained[name]
    if one.start is None:
        for file in (TOKENIZER_FILE, TRANSCRIPT_TOKENIZER_FILE):
            copy_file(out / "pretrained" / file, folder / file)
        new: dict[str, Any] = {
            "model": recipe.shape,
            "vocabulary_size": recipe.vocabulary_size,
            "transcript_vocabulary_size": recipe.transcript_vocabulary_size,
        }
    else:
        new = trained_further(recipe, pretrained_model(recipe, out, one.start), recipe.languages)
    with run_log(folder) as report:
        train_translator(
            translator(recipe, one.languages, recipe.pretraining_of(name), known=recipe.languages, **new),
            folder,
            report=report,
        )
    forget_run(folder)


def _splice(recipe: EncoderTransferRecipe, out: Path, names: list[str]) -> None:
    sources = {name: load(pretrained_model(recipe, out, name)) for name in recipe.pretrained}
    base = sources[recipe.shared]
    made = {name: splice(base, sources, recipe.starts[name], seed=_SEED_OF_RANDOM) for name in names}
    there = [name for name in recipe.grid.starts if name not in names]
    check_encoders_alone({**made, **{name: load(start_model(out, name)) for name in there}})
    for name, model in made.items():
        write_json(start_model(out, name) / PARTS_FILE, digests(model))
        save(model, start_model(out, name), bits=32)


def _say_unknown(recipe: EncoderTransferRecipe, out: Path, start: str, report: Report) -> None:
    """Say which texts the tokenizer of the starts cannot write whole."""
    made = start_model(out, start)
    config = read_config(made)
    tokenizer = Tokenizer.load(made / TOKENIZER_FILE, config.target_languages)
    manifest = Manifest(recipe.data / "train")
    for language in recipe.grid.languages:
        own = (manifest[int(index)] for index in np.flatnonzero(manifest.languages == language))
        texts = (utterance.text_in(recipe.target(language)) for utterance in own)
        limited = islice(filter(None, texts), recipe.tokenizer_texts)
        for line in text_warnings(limited, tokenizer, config.max_tokens - 2):
            report(f"{language}: {line}")


def digests(model: Conformer) -> dict[str, str]:
    """Digests of the encoder, decoder, joint network and tokenizer of a model."""
    weights = model.state_dict()
    joint = {name for name in weights if name.startswith("transducer.joint.")}
    encoder = {name for name in weights if name.startswith("encoder.")}
    by_part = {
        "encoder": _digest((name, weights[name]) for name in sorted(encoder)),
        "decoder": _digest((name, weights[name]) for name in sorted(weights.keys() - encoder - joint)),
        "tokenizer": hashlib.sha256(model.tokenizer.model).hexdigest()[:12],
    }
    return by_part | ({"joint": _digest((name, weights[name]) for name in sorted(joint))} if joint else {})


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, value in tensors:
        digest.update(name.encode())
        digest.update(value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
