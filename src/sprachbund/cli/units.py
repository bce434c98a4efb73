"""`sprachbund units`: speech as discrete units that share one vocabulary with text."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprachbund.cli.console import Bar, UsageError, print_json, resumable, say, size
from sprachbund.cli.models import fetch
from sprachbund.cli.options import OWN_PANEL, Panel, VerbApp, with_options
from sprachbund.models.tokens.unit_options import FitOptions
from sprachbund.units.options import EncodingOptions, FeatureOptions, LayerOptions
from sprachbund.util.computing import Computing

if TYPE_CHECKING:
    from sprachbund.models.tokens.directory import Units
    from sprachbund.units.encoded import EncodedCorpus, Extraction
    from sprachbund.units.measures import UnitMeasures


# Printing of units, of corpora as units, and of measurements.


def fitted(units: "Units") -> dict[str, Any]:
    """Return the description of units, as JSON."""
    return {
        "directory": str(units.directory),
        "vocabulary_size": len(units.vocabulary),
        "unit_pieces": int(units.vocabulary.is_unit.sum()),
        "identity": units.identity.model_dump(),
        **units.config.model_dump(mode="json"),
    }


def _print_units(units: "Units") -> None:
    """Print the features, data and vocabulary of units."""
    config, vocabulary = units.config, units.vocabulary
    source, kmeans = config.source, config.options.kmeans
    typer.echo(
        f"features    layer {source.layer} of {source.num_layers} of {source.name} ({source.family}), "
        f"{source.width} wide, {1 / source.frame_s:g} a second"
    )
    hash_of = ", ".join(f"{data.utterances} utterances of {data.directory}" for data in config.data)
    typer.echo(f"data        {hash_of}")
    typer.echo(
        f"k-means     {kmeans.clusters} clusters from {config.num_frames} frames in {config.num_steps} steps, "
        f"{config.explained:.1%} of the variance explained"
    )
    typer.echo(
        f"vocabulary  {vocabulary.form}: {len(vocabulary)} ids, {int(vocabulary.is_unit.sum())} of them pieces of "
        f"units; tokens for {', '.join(config.languages) or 'no language'}"
    )
    if config.mean_length_ratio is not None:
        typer.echo(f"lengths     {config.mean_length_ratio} pieces of units for each of transcript")
    if config.no_frames:
        typer.echo(f"too short   {len(config.no_frames)} utterances, the first is {config.no_frames[0]}")
    typer.echo(f"{units.directory}; next: sprachbund units encode {units.directory} DATA --out DIR")


def _print_encoded(encoded: "EncodedCorpus", out: Path) -> None:
    """Print the amount of units written."""
    info = encoded.info
    typer.echo(
        f"{info.utterances} utterances, {info.hours:.2f} h: {info.frames} frames, {info.units} units without repeats, "
        f"in {len(info.shards)} shards"
    )
    if info.skipped:
        typer.echo(
            f"{len(info.skipped)} left out, the first is {info.skipped[0].id}: {info.skipped[0].reason}"
        )
    typer.echo(f"{out}; next: sprachbund units show UNITS {out}")


def _print_measured(measured: "UnitMeasures") -> None:
    """Print the agreement of units with labels, and their sizes."""
    numbers = measured.as_json()
    agreement, chance, sizes = measured.agreement, measured.by_chance, measured.sizes
    typer.echo(f"measured against {measured.against}; {measured.unlabelled} frames without a label")
    typer.echo(
        f"clusters    {numbers['clusters_used']} of {numbers['clusters']} used, as evenly as "
        f"{numbers['perplexity']:.0f} equal ones"
    )
    for name, label in (
        ("label_purity", "label purity"),
        ("cluster_purity", "cluster purity"),
        ("pnmi", "PNMI"),
    ):
        typer.echo(f"{label:<15}{getattr(agreement, name):.3f}, {getattr(chance, name):.3f} by chance")
    typer.echo(
        f"per second  {sizes.units_per_s:.1f} units of {sizes.bits_per_s:.0f} bits in all ({sizes.flat_bits_per_s:.0f} "
        f"if all were equally frequent), {sizes.pieces_per_s:.1f} pieces of {sizes.piece_bits_per_s:.0f} bits"
    )
    typer.echo(
        f"stored      {size(sizes.stored_bytes)} of units; log-mel would be {size(sizes.log_mel_bytes)}, "
        f"{sizes.log_mel_ratio:.0f} times as much ({sizes.log_mel_file_ratio:.0f} times the shards with durations "
        "and texts)"
    )
    if measured.lengths is not None:
        lengths = measured.lengths
        typer.echo(
            f"lengths     {lengths.unit_pieces:.1f} pieces of units, {lengths.text_pieces:.1f} of transcript made "
            f"{lengths.ratio:g} times as long: {lengths.off:+.0%}"
        )
    _print_ctc(measured)


def _print_ctc(measured: "UnitMeasures") -> None:
    for language, count in measured.too_long.items():
        texts = f"{count} of {measured.targets[language]} texts in {language}"
        typer.echo(f"too long    {texts} for CTC at stride {measured.stride}")
    if measured.too_long_examples:
        first = measured.too_long_examples[0]
        typer.echo(
            f"            the first is {first.name}: {first.needed} frames wanted, {first.available} there"
        )


PICTURE = ".png"


def register(app: typer.Typer) -> None:
    """Add the verb and what stands under it."""
    units = VerbApp(
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    units.command("fit", help="Find units in the features of a speech encoder, and their vocabulary.")(
        with_options(fit)
    )
    units.command("encode", help="Write a corpus as units.")(with_options(encode))
    units.command("show", help="Say and draw what units stand for, and how small they are.")(show)
    app.add_typer(units, name="units")


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="bundled, a conformer, Whisper or SeamlessM4T model, or a WavLM, HuBERT, wav2vec 2.0, XLS-R or w2v-BERT "
        "2.0 checkpoint.",
    ),
]
DataDirectories = Annotated[list[Path], typer.Argument(metavar="DATA", help="Corpora, each a directory.")]
UnitsDirectory = Annotated[Path, typer.Argument(metavar="UNITS", help="What `units fit` wrote.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where it goes.")]
Texts = Annotated[
    list[Path] | None,
    typer.Option("--texts", metavar="FILE", help="More texts for the vocabulary, a line each; repeatable."),
]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]


def fit(
    model: Model,
    data: DataDirectories,
    out: Out,
    texts: Texts = None,
    offline: Offline = False,
    as_json: AsJson = False,
    *,
    features: Annotated[LayerOptions, Panel("Features")],
    options: Annotated[
        FitOptions, Panel("Data of the units", nested={"kmeans": "k-means", "vocabulary": "Vocabulary"})
    ],
    computing: Annotated[Computing, Panel("Computing")],
) -> None:
    """Find units; the same command again goes on where it stopped."""
    with Bar("starting"):
        from sprachbund.units.fit import Fit, estimate, make_units
    with Bar("loading the model"):
        wanted = Fit(
            extraction=_extraction(model, features, offline=offline),
            data=tuple(path.resolve() for path in data),
            out=out,
            options=options,
            texts=tuple(texts or ()),
            computing=computing,
        )
        needed = estimate(wanted)
    say(
        f"k-means sees {needed.utterances} utterances, {needed.hours:.2f} h, about {needed.frames} frames; "
        f"{size(needed.disk_bytes)} of disk for a while"
    )
    with resumable(out), Bar("preparing") as bar:
        units = make_units(wanted, lambda step, done, total: bar.update(done, total, step))
    print_json(fitted(units)) if as_json else _print_units(units)


def encode(
    units: UnitsDirectory,
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A corpus.")],
    out: Out,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="The model of the units, where it is elsewhere now."),
    ] = None,
    offline: Offline = False,
    as_json: AsJson = False,
    *,
    options: Annotated[EncodingOptions, Panel(OWN_PANEL)],
    features: Annotated[FeatureOptions, Panel("Computing")],
    computing: Annotated[Computing, Panel("Computing")],
) -> None:
    """Write a corpus as units; the same command again goes on where it stopped."""
    with Bar("starting"):
        from sprachbund.models.tokens.directory import Units
        from sprachbund.units.encoded import Encoding
        from sprachbund.units.encoded import encode as encode_corpus

        source = Units(units).config.source
    with Bar("loading the model"):
        wanted = LayerOptions(layer=source.layer, **asdict(features))
        extraction = _extraction(model or source.name, wanted, offline=offline)
    encoding = Encoding(
        units=units.resolve(),
        extraction=extraction,
        data=data.resolve(),
        out=out.resolve(),
        computing=computing,
        **asdict(options),
    )
    with resumable(out), Bar("encoding") as bar:
        encoded = encode_corpus(encoding, bar.update)
    print_json(encoded.info.model_dump(mode="json")) if as_json else _print_encoded(encoded, out)


def show(
    units: UnitsDirectory,
    encoded: Annotated[
        Path | None, typer.Argument(metavar="ENCODED", help="A corpus as units, to measure them on.")
    ] = None,
    phones: Annotated[
        Path | None,
        typer.Option(
            "--phones",
            metavar="FILE",
            help="Table of id, start_s, end_s, phone; without one, letters spread evenly over the frames.",
        ),
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option(
            "--ratio", metavar="X", help="By which text is made longer; the mean ratio if not given."
        ),
    ] = None,
    stride: Annotated[
        int, typer.Option("--stride", metavar="N", min=1, help="Of the encoder that CTC stands on.")
    ] = 2,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.png", help="Draw it, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what units are made of; with a corpus as units, what they stand for and how small they are."""
    if out is not None and (out.suffix != PICTURE or encoded is None):
        raise UsageError(f"--out {out} has to end in {PICTURE}, and needs a corpus as units to draw")
    if phones is not None and encoded is None:
        raise UsageError(
            "--phones needs a corpus as units to measure them on; name what `units encode` wrote"
        )
    with Bar("reading"):
        from sprachbund.models.tokens.directory import Units

        read = Units(units)
    if encoded is None:
        return print_json(fitted(read)) if as_json else _print_units(read)
    measured = _measured(read, encoded, phones, ratio, stride)
    if out is not None:
        with Bar("drawing"):
            from sprachbund.units.measures import draw

            source = read.config.source
            draw(
                measured,
                out,
                f"{read.num_clusters} units of layer {source.layer} of {Path(source.name).name}",
            )
    print_json(measured.as_json()) if as_json else _print_measured(measured)
    if out is not None:
        say(f"the picture is in {out}")


def _extraction(model: str, features: LayerOptions, *, offline: bool) -> "Extraction":
    from sprachbund.models.tokens.sources import encoder_hash
    from sprachbund.units.encoded import Extraction

    directory = fetch(model, offline=offline).resolve()
    name = str(directory) if Path(model).is_dir() else model
    return Extraction(directory=directory, name=name, hash=encoder_hash(directory), **asdict(features))


def _measured(
    units: "Units", directory: Path, phones: Path | None, ratio: float | None, stride: int
) -> "UnitMeasures":
    from sprachbund.units.encoded import EncodedCorpus
    from sprachbund.units.measures import Characters, Phones, measure

    encoded = EncodedCorpus(directory, units)
    # The table has the times of the recording, of which a faster frame is longer.
    frame_s = encoded.info.frame_s * encoded.info.speed
    aligner = Characters() if phones is None else Phones(phones, frame_s)
    with Bar("measuring", len(encoded)) as bar:
        return measure(units, encoded, aligner, stride=stride, ratio=ratio, progress=bar.update)
