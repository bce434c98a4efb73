"""`sprachbund models`: which models are on this machine, what they know, and under which licences."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sprachbund.cli.console import Bar, print_json, size
from sprachbund.errors import SprachbundError


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="List the models on this machine.")(models)


def models(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR]", help="Model directories; if none are given, those here are found."),
    ] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Name every pair.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per model.")] = False,
) -> None:
    """List models: the bundled one, those in the working directory, and Whisper models downloaded before."""
    named = {str(path): path for path in directories} if directories else _local_models()
    with Bar("reading models"):
        described = [_described(name, path) for name, path in named.items()]
    for model in described:
        if as_json:
            print_json(model)
        else:
            typer.echo(_text(model, pairs=pairs) + "\n")
    if any("error" in model for model in described):
        raise typer.Exit(1)


def _local_models() -> dict[str, Path]:
    """Name, as `--model` takes it, to directory."""
    from sprachbund.models.io import BUNDLED, FAMILIES, bundled_directory, family_of

    directories = {BUNDLED: bundled_directory(), **_downloaded()}
    for config in sorted(
        [Path("config.json"), *Path().glob("*/config.json"), *Path().glob("*/*/config.json")]
    ):
        try:
            if family_of(config.parent) in FAMILIES:
                directories[str(config.parent)] = config.parent
        except (SprachbundError, OSError):
            continue  # some other program's config.json
    return directories


def _downloaded() -> dict[str, Path]:
    """Whisper models in the Hugging Face cache, the newest snapshot of each."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    from sprachbund.models.io import family_of

    try:
        repos = scan_cache_dir().repos
    except (CacheNotFound, OSError):
        return {}
    downloaded = {}
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        newest = max(repo.revisions, key=lambda revision: revision.last_modified, default=None)
        try:
            if newest is not None and family_of(newest.snapshot_path) == "whisper":
                downloaded[repo.repo_id] = Path(newest.snapshot_path)
        except SprachbundError:
            continue
    return downloaded


def _described(name: str, directory: Path) -> dict[str, Any]:
    try:
        return describe(name, directory)
    except SprachbundError as error:
        return {"model": name, "directory": str(directory), "error": str(error)}


def describe(name: str, directory: Path) -> dict[str, Any]:
    """What a model directory holds; loads it, so that a broken one shows.

    Raises:
        SprachbundError: when it is no model, or broken.
    """
    from sprachbund.api import load

    if not directory.is_dir():
        raise SprachbundError(f"{directory} is not there; check the path, or reinstall the package")
    model = load(directory, offline=True, engine="torch")
    card = model.card
    return {
        "model": name,
        "directory": str(directory),
        "name": card.name,
        "family": model.family.name,
        "description": card.description,
        "licence": card.licence,
        "bits": _bits(directory),
        "size_bytes": sum(path.stat().st_size for path in directory.iterdir() if path.is_file()),
        "source_languages": sorted({source for source, _ in model.pairs}),
        "target_languages": sorted({target for _, target in model.pairs}),
        "pairs": [list(pair) for pair in model.pairs],
        "data": card.data,
        "limits": card.limits,
        "scores": card.scores,
    }


def _bits(directory: Path) -> int | None:
    """Of a stored weight, as most of the weights in the directory have it; of packed ones where there are any."""
    from safetensors import safe_open

    from sprachbund.models.weights import read_packed_linears

    if (packed := read_packed_linears(directory)) is not None:
        return packed.bits
    counts: dict[int, int] = {}
    widths = {"I8": 8, "F16": 16, "BF16": 16, "F32": 32}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                part = file.get_slice(name)
                numel = 1
                for length in part.get_shape():
                    numel *= length
                bits = widths.get(part.get_dtype(), 32)
                counts[bits] = counts.get(bits, 0) + numel
    return max(counts, key=lambda bits: counts[bits], default=None)


def _text(model: dict[str, Any], *, pairs: bool) -> str:
    if "error" in model:
        return f"{model['model']}\n  broken     {model['error']}"
    bits = f", {model['bits']} bits" if model["bits"] else ""
    rows = [
        ["is", f"{model['name']}: {model['family']}{bits}, {size(model['size_bytes'])}"],
        ["about", model["description"]],
        ["hears", _some(model["source_languages"])],
        ["writes", _some(model["target_languages"])],
        ["pairs", _pairs(model, whole=pairs)],
        ["licence", model["licence"] or "not stated; see where it came from"],
        ["data", "; ".join(dict.fromkeys(_data(entry) for entry in model["data"]))],
        *[["limit", limit] for limit in model["limits"]],
        ["in", model["directory"]],
    ]
    lines = [f"  {key:9}  {value}" for key, value in rows if value]
    return "\n".join([model["model"], *lines])


def _some(tags: list[str], most: int = 20) -> str:
    shown = ", ".join(tags[:most])
    return shown if len(tags) <= most else f"{shown} and {len(tags) - most} more"


def _pairs(model: dict[str, Any], *, whole: bool) -> str:
    if whole:
        return ", ".join(f"{source}-{target}" for source, target in model["pairs"])
    same = sum(source == target for source, target in model["pairs"])
    other = len(model["pairs"]) - same
    if other == len(model["source_languages"]) * len(model["target_languages"]) - same and other:
        return f"any to any: {other} of translation, {same} of transcription"
    into = {t for s, t in model["pairs"] if s != t}
    translation = f"{other} of translation (into {_some(sorted(into))})" if other else "none of translation"
    return f"{translation}, {same} of transcription"


def _data(entry: dict[str, Any]) -> str:
    licence = entry.get("licence", "")
    licence = licence if isinstance(licence, str) else ", ".join(licence)
    return f"{entry.get('name', '?')}{f' ({licence})' if licence else ''}"
