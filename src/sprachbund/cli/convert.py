"""`sprachbund convert CHECKPOINT --out DIR`: a checkpoint of another form as a model directory."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sprachbund.cli import completion
from sprachbund.cli.console import Bar, UsageError, as_usage, listed, print_json, say, size, table
from sprachbund.cli.models import fetch

Head = Literal["transducer", "ctc"]


def convert(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A .nemo file, a nemotron_asr_streaming or nemotron3_5_asr directory or hub id, a .pt file of "
            "openai-whisper, or a directory of CTranslate2 with a Whisper model.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the model goes; a new folder.")],
    language: Annotated[
        list[str] | None,
        typer.Option(
            "--language",
            metavar="LANG,…",
            help="What it hears and writes; published Parakeets, Canaries and Whisper models say it themselves.",
        ),
    ] = None,
    head: Annotated[
        Head | None,
        typer.Option(
            "--head", help="Of a .nemo file with a transducer and a CTC head; the transducer by default."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="MODEL",
            help="A Whisper checkpoint with tokenizer.json, for a .pt file: a directory, alias or Hugging Face id.",
            autocompletion=completion.models,
        ),
    ] = None,
    licence: Annotated[
        str, typer.Option("--licence", metavar="NAME", help="Of the weights, for the model's card.")
    ] = "",
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Read a Whisper, Parakeet or Canary model or a streaming transducer and write it as others are; no file is run."""
    from sprachbund.models.whisper.other_formats import is_other_format

    if is_other_format(Path(checkpoint)):
        if language or head:
            option = "--language" if language else "--head"
            raise UsageError(
                f"{option} is for other models: a Whisper model names its languages itself, and has one head; leave it "
                "out"
            )
        return _convert_whisper(Path(checkpoint), out, tokenizer, licence, offline=offline, as_json=as_json)
    if tokenizer is not None:
        raise UsageError("--tokenizer is for a .pt file of openai-whisper; leave it out")
    with as_usage(), Bar("converting"):
        from sprachbund.compression.smaller import convert as convert_checkpoint
        from sprachbund.models.conformer import Conformer
        from sprachbund.nn.quantized import num_weights

        tags = [_tag(value) for value in listed(language or [])]
        model = convert_checkpoint(checkpoint, out, tags, licence=licence, offline=offline, head=head)
        summary: dict[str, Any] = {
            "out": str(out),
            "kind": model.name,
            "parameters": num_weights(model),
            "languages": sorted({source for source, _ in model.pairs()}),
        }
        if isinstance(model, Conformer) and model.config.streaming is not None:
            summary["right_contexts"] = list(model.config.streaming.right_contexts)
    if as_json:
        return print_json(summary)
    contexts = ", ".join(str(right) for right in summary.get("right_contexts", ()))
    trained = f"frames ahead it was trained for: {contexts}" if contexts else f"a {summary['kind']}"
    say(f"{summary['parameters']:,} weights; {trained}; the model is in {out}")


def _convert_whisper(
    checkpoint: Path, out: Path, tokenizer: str | None, licence: str, *, offline: bool, as_json: bool
) -> None:
    with as_usage(), Bar("converting"):
        from sprachbund.compression.smaller import check_new
        from sprachbund.models.card import Card
        from sprachbund.models.hub import find
        from sprachbund.models.whisper import save
        from sprachbund.models.whisper.other_formats import load_other_format
        from sprachbund.nn.quantized import num_weights

        check_new(out)
        home = None if tokenizer is None else find(tokenizer, offline=offline, weights=False)
        model = load_other_format(checkpoint, home)
        sources, targets = (sorted(tags) for tags in map(set, zip(*model.pairs(), strict=True)))
        card = Card(name=out.name, licence=licence, source_languages=sources, target_languages=targets)
        save(model, out, bits=16, card=card)
        summary = {"out": str(out), "parameters": num_weights(model), "languages": sources}
    if as_json:
        return print_json(summary)
    say(f"{summary['parameters']:,} weights; {len(sources)} languages; the model is in {out}")


def _tag(value: str) -> str:
    """A BCP-47 tag in its usual spelling. Raises UsageError for what is none."""
    import langcodes

    if not langcodes.tag_is_valid(value):
        raise UsageError(f"{value!r} is no language tag; give BCP-47, such as en or pt-BR")
    return langcodes.standardize_tag(value)


# `sprachbund export MODEL --out PLACE`: a model in the form of another runtime.

ExportFormat = Literal["onnx", "ctranslate2", "ggml"]


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A streaming transducer, a Parakeet or a Canary, for onnx; a Whisper model for the others.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where it goes: a new folder; for ggml, a new file.")
    ],
    form: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            help="onnx: graphs, of Parakeet and Canary for onnx-asr. ctranslate2: for faster-whisper. ggml: for "
            "whisper.cpp.",
        ),
    ] = "onnx",
    bits: Annotated[
        Literal["8", "16", "32"] | None,
        typer.Option(
            "--bits",
            help="Of the weights. Whisper: 16 if not given, the only ones of ggml. Parakeet and Canary: 32 if not "
            "given, or 8.",
        ),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a model in the form of another runtime; packed layers of 4 or 8 bits stay packed in onnx."""
    if form != "onnx":
        return _export_whisper(model, out, form, int(bits or 16), offline=offline, as_json=as_json)
    with as_usage():
        from sprachbund.compression.fastconformer_onnx import LAYOUTS
        from sprachbund.compression.smaller import check_new
        from sprachbund.models.hub import family_of

        check_new(out)
        source = fetch(model, offline=offline)
        kind = family_of(source)
    if kind in LAYOUTS:
        return _export_fastconformer(model, source, out, bits, as_json=as_json)
    if bits is not None:
        raise UsageError(
            "--bits is for Whisper models, Parakeet and Canary; other graphs have the bits of the model, see `compress "
            "quantize`"
        )
    with as_usage(), Bar("exporting"):
        from sprachbund.compression.onnx_export import check_exportable
        from sprachbund.compression.onnx_export import export as write
        from sprachbund.compression.smaller import card_of, write_whole
        from sprachbund.models.io import load
        from sprachbund.models.streaming_onnx import read_description

        family: Any = load(source, offline=True)
        check_exportable(family)
        card = card_of(family, source, out.name, {"by": "export"}, model=model)
        write_whole(out, lambda draft: write(family, draft, card))
        description = read_description(out)
    if as_json:
        return print_json({"out": str(out), **description.model_dump(mode="json")})
    _say_graphs([out / graph.file for graph in description.graphs.values()])
    tiers = ", ".join(f"{tier.right_context} ({tier.latency_ms} ms)" for tier in description.tiers)
    say(f"frames ahead: {tiers}; what goes in and out is in {out / 'config.json'}")


def _export_fastconformer(model: str, source: Path, out: Path, bits: str | None, *, as_json: bool) -> None:
    if bits == "16":
        raise UsageError("graphs of Parakeet and Canary have 32 bits or 8; leave --bits out, or give 8")
    with as_usage(), Bar("exporting"):
        from sprachbund.compression.fastconformer_onnx import check_exportable
        from sprachbund.compression.fastconformer_onnx import export as write
        from sprachbund.compression.smaller import card_of, write_whole
        from sprachbund.models.io import load
        from sprachbund.util.files import read_object

        family = check_exportable(load(source, offline=True))
        card = card_of(family, source, out.name, {"by": "export"}, model=model)
        write_whole(out, lambda draft: write(family, draft, card, 8 if bits == "8" else 32))
        config = read_object(out / "config.json")
    if as_json:
        return print_json({"out": str(out), "bits": int(bits or 32), **config})
    _say_graphs(sorted(out.glob("*.onnx")))
    quantization = ', quantization="int8"' if bits == "8" else ""
    say(f'in Python: onnx_asr.load_model("{config["model_type"]}", "{out}"{quantization})')


def _say_graphs(paths: list[Path]) -> None:
    """A table of graphs with their sizes, that of weights beside them included."""
    rows = []
    for path in paths:
        weights = path.with_name(f"{path.name}.data")
        num_bytes = sum(one.stat().st_size for one in (path, weights) if one.is_file())
        rows.append([path.name, size(num_bytes)])
    typer.echo(table(rows, ["graph", "size"]))


def _export_whisper(
    model: str, out: Path, form: Literal["ctranslate2", "ggml"], bits: Any, *, offline: bool, as_json: bool
) -> None:
    with as_usage(), Bar("exporting"):
        from sprachbund.compression.smaller import check_new, write_whole
        from sprachbund.compression.whisper_export import check_exportable, export_ctranslate2, export_ggml
        from sprachbund.models.io import load
        from sprachbund.util.files import atomic_path

        if form == "ggml" and out.is_dir():
            raise UsageError(f"--out {out} is a folder; name a file in it, such as {out / 'ggml-model.bin'}")
        check_new(out)
        whisper = check_exportable(load(fetch(model, offline=offline), offline=True), form, bits)
        if form == "ctranslate2":
            write_whole(out, lambda draft: export_ctranslate2(whisper, draft, bits))
        else:
            with atomic_path(out) as draft:
                export_ggml(whisper, draft)
        files = sorted(path for path in (out.iterdir() if out.is_dir() else [out]))
        num_bytes = sum(path.stat().st_size for path in files)
        by_target = whisper.tasks.target_language_prompt
    if as_json:
        return print_json(
            {"out": str(out), "format": form, "bits": bits, "bytes": num_bytes, "by_target": by_target}
        )
    say(f"{out} has {size(num_bytes)}, in {bits} bits")
    if by_target:
        say("this model is prompted by the language wanted: give that to the other runtime as its language")


def register(app: typer.Typer) -> None:
    """Add the verbs between forms of models."""
    app.command()(convert)
    app.command()(export)
