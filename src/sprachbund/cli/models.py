"""`sprachbund models`: models on this machine and public ones; what they know, and under which licences."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from sprachbund.cli import completion
from sprachbund.cli.console import Bar, print_json, say, size, table
from sprachbund.cli.options import VerbApp
from sprachbund.errors import SprachbundError
from sprachbund.models.catalogue import (
    CATALOGUE,
    SHIPPED,
    Checkpoint,
    find_checkpoint,
    folders_with_config,
)
from sprachbund.text.languages import MIXED


def register(app: typer.Typer) -> None:
    """Add the verb and what stands under it."""
    models = VerbApp(no_args_is_help=True, rich_markup_mode=None)
    models.command("list", help="List the models on this machine, and public ones that it can load.")(
        list_models
    )
    models.command("show", help="Describe models: languages, pairs, licence, data, limits.")(show)
    models.command("download", help="Download a model from the hub.")(download)
    models.command("check", help="Read all of a model and of its packed weights, and see that it loads.")(
        check
    )
    models.command("push", help="Send a model directory to the hub, with a page made of its card.")(push)
    app.add_typer(models, name="models")


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per model.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]
Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL",
        help="bundled, a directory, an alias or a Hugging Face id; all on this machine if none is given.",
        autocompletion=completion.models,
    ),
]


def list_models(as_json: AsJson = False) -> None:
    """List the models on this machine, then public checkpoints; nothing is loaded."""
    here = _local_models()
    downloaded = {name for name in here if name != str(here[name])}
    if as_json:
        for name, path in here.items():
            print_json(
                {"model": name, "directory": str(path), "family": _family(path), "size_bytes": _size(path)}
            )
        for one in CATALOGUE:
            values: dict[str, Any] = {
                "model": one.alias,
                "id": one.id,
                "family": one.family,
                "task": one.task,
            }
            values |= {"languages": len(one.sources), "size_gb": one.size_gb, "licence": one.licence}
            print_json({**values, "commercial_use": one.commercial, "here": one.id in downloaded})
        return
    rows = [[name, _family(path), size(_size(path))] for name, path in here.items()]
    typer.echo(table(rows, ["on this machine", "family", "size"]))
    rows = [
        [one.alias, _does(one), f"{one.size_gb:g} GB", one.licence, "here" if one.id in downloaded else ""]
        for one in CATALOGUE
    ]
    typer.echo("\n" + table(rows, ["public", "does", "about", "licence of the weights", ""]))
    typer.echo("\n`sprachbund models download NAME` fetches one, and `--model NAME` uses it")


def _does(one: Checkpoint) -> str:
    into = {
        "transcribe": "",
        "to-english": ", into English",
        "with-english": ", into English and from it",
        "any-to-any": ", into each other",
    }
    return f"text of {one.spoken}, into each other" if one.task == "text" else f"{one.spoken}{into[one.task]}"


def _family(directory: Path) -> str:
    from sprachbund.util.files import read_object

    config = read_object(directory / "config.json")
    return str(config.get("family") or config.get("model_type"))


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir() if path.is_file())


def show(
    names: Models = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Name every pair.")] = False,
    as_json: AsJson = False,
) -> None:
    """Describe models; without names, the bundled one, those in the working directory, and downloaded ones."""
    described, named = [], _named(names)
    with Bar("reading models", len(named)) as bar:
        for number, (name, path) in enumerate(named.items()):
            bar.update(number)
            try:
                described.append(describe(name, path))
            except SprachbundError as error:
                described.append({"model": name, "directory": str(path), "error": str(error)})
    for model in described:
        if as_json:
            print_json(model)
        else:
            typer.echo(_text(model, pairs=pairs) + "\n")
    if any("error" in model for model in described):
        raise typer.Exit(1)


def download(
    name: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="An alias, or owner/name.", autocompletion=completion.models),
    ],
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a model into the cache of the hub's library; the same command again fetches what is missing."""
    from sprachbund.util.extras import is_installed

    public = find_checkpoint(name)
    if public is not None:
        say(f"{public.id}: {public.text}")
    directory = fetch(name, offline=offline)
    num_bytes = _size(directory)
    done = {
        "model": name,
        "directory": str(directory),
        "family": _family(directory),
        "size_bytes": num_bytes,
    }
    if as_json:
        return print_json(done)
    typer.echo(f"{directory}  {size(num_bytes)}")
    if public is not None and public.extra and not is_installed(public.extra):
        say(f"note: it needs more packages; run: pip install 'sprachbund[{public.extra}]'")
    say(f"next: sprachbund translate FILE --to LANG --model {name}")


def push(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A model directory.")],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository; made if it is missing.")],
    private: Annotated[
        bool, typer.Option("--private", help="A new repository is for its owner alone.")
    ] = False,
    message: Annotated[str, typer.Option("--message", metavar="TEXT", help="Of the commit.")] = "A model",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the page and the files, and send nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send a model to the hub; `hf auth login`, or HF_TOKEN, gives the right to write there."""
    from sprachbund.models import publish

    files = publish.files_of(directory)
    num_bytes = sum(path.stat().st_size for path in files)
    if dry_run:
        if as_json:
            sizes = {path.relative_to(directory).as_posix(): path.stat().st_size for path in files}
            return print_json({"model": name, "page": publish.page_to_send(directory, name), "files": sizes})
        typer.echo(publish.page_to_send(directory, name))
        rows = [[path.relative_to(directory).as_posix(), size(path.stat().st_size)] for path in files]
        typer.echo(table(rows, ["file", "size"]))
        return
    with Bar(f"sending {size(num_bytes)}"):
        address = publish.push(directory, name, private=private, message=message)
    done = {"model": name, "address": address, "files": len(files), "size_bytes": num_bytes}
    print_json(done) if as_json else typer.echo(f"{address}  {size(num_bytes)}")


def fetch(name: str, *, offline: bool) -> Path:
    """The directory of a model, downloaded with a progress bar if need be. Raises SprachbundError."""
    from sprachbund.models.io import locate

    try:
        with Bar(f"downloading {name}", unit="bytes") as bar:
            return locate(name, offline=offline, progress=bar.update)
    except KeyboardInterrupt as interruption:
        interruption.add_note("the same command fetches what is missing")
        raise


def check(names: Models = None, as_json: AsJson = False) -> None:
    """Load models whole, and read their packed weights; exit code 1 when anything is broken."""
    broken = False
    for name, path in _named(names).items():
        checked: dict[str, Any] = {"model": name, "directory": str(path)}
        try:
            with Bar(f"checking {name}"):
                checked |= _checked(name, path)
        except SprachbundError as error:
            checked |= {"error": str(error)}
        broken |= any("error" in one for one in (checked, *checked.get("packed", ())))
        if as_json:
            print_json(checked)
        else:
            typer.echo("\n".join(_lines_of(checked)))
    if broken:
        raise typer.Exit(1)


def _checked(name: str, directory: Path) -> dict[str, Any]:
    from sprachbund.engines.packed_cache import check_packed
    from sprachbund.models.cascade import Cascade
    from sprachbund.models.io import load

    if not directory.is_dir():
        raise SprachbundError(f"{directory} is not there; check the path")
    family = load(directory, offline=True)
    halves: dict[Path, Any] = {directory: family}
    if isinstance(family, Cascade):  # by its class, which knows the directories of both halves
        assert family.directories is not None
        halves = dict(zip(family.directories, (family.recogniser, family.translator), strict=True))
    packed = []
    for one in (one for half in halves for one in check_packed(half)):
        packed.append({"file": str(one.path), "weights": one.weights})
        if one.error is not None:
            packed[-1] |= {"error": str(one.error), "fix": one.rebuilt_by(name)}
    return {
        "family": family.name,
        "tensors": sum(len(half.state_dict()) for half in halves.values()),
        "packed": packed,
    }


def _lines_of(checked: dict[str, Any]) -> Iterator[str]:
    """Lines about a model and each of its packed files."""
    name = checked["model"]
    if "error" in checked:
        yield f"{name}: broken; {checked['error']}"
        return
    yield f"{name}: whole; {checked['family']}, {checked['tensors']} tensors"
    for one in checked["packed"]:
        what = f"{name}: packed in {one['weights']}"
        if "error" in one:
            yield f"{what}: broken; {one['error']}; mend it with: {one['fix']}"
        else:
            yield f"{what}: whole; {one['file']}"


def _named(names: list[str] | None) -> dict[str, Path]:
    """Models by the names given, or all that are here."""
    from sprachbund.models.io import locate

    return {name: locate(name, offline=True) for name in names} if names else _local_models()


def _local_models() -> dict[str, Path]:
    """Directories by names that `--model` takes: of models in the package, downloaded ones, those in folders here."""
    from sprachbund.models.io import bundled_directory, family_of

    directories = {**{name: bundled_directory(name) for name in SHIPPED}, **_downloaded()}
    for folder in folders_with_config():
        try:
            family_of(folder)
            directories[str(folder)] = folder
        except (SprachbundError, OSError):
            continue  # some other program's config.json
    return directories


def _downloaded() -> dict[str, Path]:
    """Models in the Hugging Face cache that can be loaded, the newest snapshot of each."""
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
            if newest is not None:
                family_of(newest.snapshot_path)
                downloaded[repo.repo_id] = Path(newest.snapshot_path)
        except SprachbundError:
            continue
    return downloaded


def describe(name: str, directory: Path) -> dict[str, Any]:
    """Return the description of a model directory; loads it, so that a broken one shows.

    Raises:
        SprachbundError: when it is no model, or broken.
    """
    from sprachbund.api import load

    if not directory.is_dir():
        raise SprachbundError(f"{directory} is not there; check the path, or reinstall the package")
    model = load(directory, offline=True, engine="torch")
    card, domain = model.card, model.family.calibration.domain
    taught = card.taught_pairs
    pairs = [pair for pair in model.pairs if taught is None or pair in taught]
    return {
        "model": name,
        "directory": str(directory),
        "name": card.name,
        "family": model.family.name,
        "description": card.description,
        "licence": " and ".join(one.name for one in model.licences if one.name),
        "commercial": all(one.commercial for one in model.licences),
        "bits": _bits(directory),
        "size_bytes": _size(directory),
        "source_languages": sorted({source for source, _ in pairs}),
        "target_languages": sorted({target for _, target in pairs}),
        "pairs": [list(pair) for pair in pairs],
        "pairs_recorded": taught is not None,
        "start": card.training.get("start"),
        "start_licence": card.training.get("start_licence"),
        "data": card.data,
        "limits": card.limits,
        "max_out_of_domain": None if domain is None else domain.threshold,
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


def _dropped(max_out_of_domain: float | None) -> str:
    if max_out_of_domain is None:
        return ""
    return (
        f"speech of other kinds: a probability above {max_out_of_domain:g} that a text is not what was said"
    )


def _text(model: dict[str, Any], *, pairs: bool) -> str:
    if "error" in model:
        return f"{model['model']}\n  broken     {model['error']}"
    bits = f", {model['bits']} bits" if model["bits"] else ""
    name = model["model"] if model["name"] == model["directory"] else model["name"]
    rows = [
        ["is", f"{name}: {model['family']}{bits}, {size(model['size_bytes'])}"],
        ["about", model["description"]],
        ["hears", _some(model["source_languages"])],
        ["writes", _some(model["target_languages"])],
        ["pairs", _pairs(model, whole=pairs)],
        ["taught", "" if model["pairs_recorded"] else _NO_RECORD],
        [
            "licence",
            (model["licence"] or "not stated; see where it came from")
            + ("" if model["commercial"] else ", no commercial use"),
        ],
        ["start", _start(model)],
        ["data", "; ".join(dict.fromkeys(_data(entry) for entry in model["data"]))],
        *[["limit", limit] for limit in model["limits"]],
        ["drops", _dropped(model["max_out_of_domain"])],
        ["in", model["directory"]],
    ]
    lines = [f"  {key:9}  {value}" for key, value in rows if value]
    return "\n".join([model["model"], *lines])


_NO_RECORD = "no record of the pairs in its training data; the languages and pairs are those that it takes"


def _start(model: dict[str, Any]) -> str:
    """The model that it was trained on from, with its licence."""
    licence = model["start_licence"]
    return f"{model['start']}{f' ({licence})' if licence else ''}" if model["start"] else ""


def _some(tags: list[str], most: int = 20) -> str:
    shown = ", ".join(tags[:most])
    return shown if len(tags) <= most else f"{shown} and {len(tags) - most} more"


def _pairs(model: dict[str, Any], *, whole: bool) -> str:
    if whole:
        return ", ".join(f"{source}-{target}" for source, target in model["pairs"])
    mixed = sum(target == MIXED for _, target in model["pairs"])
    same = sum(source == target for source, target in model["pairs"])
    other = len(model["pairs"]) - same - mixed
    parts = [f"{other or 'none'} of translation", f"{same} of transcription"]
    if mixed:
        parts.append(f"{mixed} of transcription of mixed speech")
    every = len(model["source_languages"]) * len({*model["target_languages"]} - {MIXED}) - same
    if other == every and other:
        return f"any to any: {', '.join(parts)}"
    if other:
        into = {target for source, target in model["pairs"] if target not in (source, MIXED)}
        parts[0] += f" (into {_some(sorted(into))})"
    return ", ".join(parts)


def _data(entry: dict[str, Any]) -> str:
    licence = entry.get("licence", "")
    licence = licence if isinstance(licence, str) else ", ".join(licence)
    return f"{entry.get('name', '?')}{f' ({licence})' if licence else ''}"
