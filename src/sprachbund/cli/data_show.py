"""`sprachbund data show DIR`: how much a corpus holds, of what, whose it is, and a few of its utterances."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprachbund.cli.console import print_json, table

if TYPE_CHECKING:
    from sprachbund.data.manifest import Manifest

INFO = "dataset.json"


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


def parts(directory: Path) -> list[Path]:
    """The corpora in a folder: itself, or those directly under it."""
    found = [directory, *sorted(path for path in directory.glob("*") if path.is_dir())]
    return [path for path in found if any(path.glob("cuts.*.jsonl"))]


def info(directory: Path) -> dict[str, Any]:
    """What `dataset.json` says of a corpus; nothing for one without, whose making was broken off."""
    path = directory / INFO
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


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
    if licence := description.get("licence"):
        lines.append(f"licence      {licence if isinstance(licence, str) else ', '.join(licence)}")
    if attribution := description.get("attribution"):
        names = attribution if isinstance(attribution, str) else "; ".join(sorted(set(attribution.values())))
        lines.append(f"attribution  {names}")
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
            if "start_s" in span
        ]
    return "\n".join(lines)
