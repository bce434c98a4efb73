"""`sprachbund data show DIR`: how much a corpus holds, of what, whose it is, and a few of its utterances."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprachbund.cli.console import Bar, print_json, table

if TYPE_CHECKING:
    from sprachbund.data.manifest import Manifest


def show(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A corpus, or a folder of several.")],
    examples: Annotated[int, typer.Option("--examples", metavar="N", min=0, help="Utterances shown.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per corpus.")] = False,
) -> None:
    """Show what a corpus holds."""
    from sprachbund.data.manifest import Manifest

    for path in parts(directory) or [directory]:
        description = describe(Manifest(path), examples)
        if as_json:
            print_json(description)
        else:
            typer.echo(_text(description) + "\n")


def check(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A corpus, or a folder of several.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per corpus.")] = False,
) -> None:
    """Read all of a corpus and compare it with its checksums."""
    from sprachbund.data.manifest import Manifest

    for path in parts(directory) or [directory]:
        manifest = Manifest(path)
        with Bar(f"checking {path}") as bar:
            known = manifest.check(bar.update)
        found = {"utterances": len(manifest), "shards": manifest.num_shards, "with_checksums": known}
        if as_json:
            print_json({"directory": str(path), **found})
        else:
            without = manifest.num_shards - known
            told = f"; {without} shards have no checksums, only their lengths were checked" if without else ""
            typer.echo(f"{path}  {len(manifest)} utterances in {manifest.num_shards} shards are whole{told}")


def parts(directory: Path) -> list[Path]:
    """The corpora in a folder: itself, or those directly under it."""
    found = [directory, *sorted(path for path in directory.glob("*") if path.is_dir())]
    return [path for path in found if any(path.glob("cuts.*.jsonl"))]


def info(directory: Path) -> dict[str, Any]:
    """What `dataset.json` says of a corpus; nothing for one without, whose making was broken off."""
    from sprachbund.data.manifest import read_info

    return read_info(directory)


def describe(manifest: "Manifest", num_examples: int) -> dict[str, Any]:
    """What is in `dataset.json`, and utterances from all over the corpus."""
    shown = min(num_examples, len(manifest))
    chosen = [i * len(manifest) // shown for i in range(shown)]
    examples = [
        {
            "id": u.id,
            "duration_s": round(u.duration_s, 2),
            "language": u.language,
            "speaker": u.speaker,
            "text": u.text,
            "translations": dict(u.translations),
            **({"spans": u.custom["spans"]} if u.custom.get("spans") else {}),
        }
        for u in (manifest[i] for i in chosen)
    ]
    return {
        "directory": str(manifest.directory),
        **info(manifest.directory),
        **manifest.summary(),
        "examples": examples,
    }


def _text(description: dict[str, Any]) -> str:
    lines = [f"{description['directory']}  {description.get('name', '')}".rstrip()]
    told = {name: dict.fromkeys(_texts(description.get(name))) for name in ("licence", "attribution")}
    lines += [f"{name:11}  {'; '.join(texts)}" for name, texts in told.items() if texts]
    rows = [
        [tag or "(no speech)", f"{values['utterances']}", f"{values['hours']:.2f}"]
        for tag, values in description["per_language"].items()
    ]
    rows.append(["all", f"{description['utterances']}", f"{description['hours']:.2f}"])
    lines += ["", table(rows, ["language", "utterances", "hours"])]
    if "switches" in description:
        lines.append(f"switches     {description['switches']}")
    for example in description["examples"]:
        lines += ["", f"{example['id']}  {example['duration_s']} s  {example['speaker']}".rstrip()]
        texts = {example["language"] or "-": example["text"], **example["translations"]}
        lines += [f"  {tag:5} {text}" for tag, text in texts.items() if text]
        lines += [
            f"{span['start_s']:14.2f} to {span['end_s']:.2f} s  {span['language']}  {span.get('text', '')}".rstrip()
            for span in example.get("spans", ())
            if span.get("start_s") is not None and span.get("end_s") is not None
        ]
    return "\n".join(lines)


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value of `dataset.json`: one, several, or by speaker."""
    if isinstance(value, dict):
        yield from sorted(text for part in value.values() for text in _texts(part))
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif value:
        yield str(value)
