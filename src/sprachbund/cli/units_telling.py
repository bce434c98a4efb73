"""What `sprachbund units` prints of units, of corpora as units, and of measurements."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sprachbund.cli.console import size

if TYPE_CHECKING:
    from sprachbund.units.directory import Units
    from sprachbund.units.encoded import Encoded
    from sprachbund.units.measures import Measured


def fitted(units: "Units") -> dict[str, Any]:
    """What is known of units, as JSON."""
    return {
        "directory": str(units.directory),
        "vocabulary_size": len(units.vocabulary),
        "unit_pieces": int(units.vocabulary.is_unit.sum()),
        "identity": units.identity.model_dump(),
        **units.config.model_dump(mode="json"),
    }


def tell_units(units: "Units") -> None:
    """What units are made of."""
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


def tell_encoded(encoded: "Encoded", out: Path) -> None:
    """What was written."""
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


def tell_measured(measured: "Measured") -> None:
    """What units stand for, and how small they are."""
    numbers = measured.as_json()
    found, chance, sizes = measured.agreement, measured.by_chance, measured.sizes
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
        typer.echo(f"{label:<15}{getattr(found, name):.3f}, {getattr(chance, name):.3f} by chance")
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
    _tell_ctc(measured)


def _tell_ctc(measured: "Measured") -> None:
    for language, count in measured.too_long.items():
        texts = f"{count} of {measured.targets[language]} texts in {language}"
        typer.echo(f"too long    {texts} for CTC at stride {measured.stride}")
    if measured.too_long_examples:
        first = measured.too_long_examples[0]
        typer.echo(
            f"            the first is {first.name}: {first.needed} places wanted, {first.available} there"
        )
