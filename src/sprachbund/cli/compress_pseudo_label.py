"""`sprachbund compress pseudo-label TEACHER DATA…`: speech and what a model writes for it, as a corpus."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprachbund.cli import compress_measuring as shared
from sprachbund.cli.console import Bar, as_usage, listed, print_json, resumable, say, table

if TYPE_CHECKING:
    from sprachbund.compression.label_records import Labelled
    from sprachbund.compression.pseudo_labels import LabelOptions

Teacher = Annotated[
    str, typer.Argument(metavar="TEACHER", help="bundled, a model directory, or a Hugging Face id.")
]
Speech = Annotated[
    list[Path],
    typer.Argument(metavar="DATA", help="Corpora, folders of recordings, recordings; texts are not needed."),
]
Targets = Annotated[
    list[str], typer.Option("--to", metavar="LANG,…", help="Languages to label in, beside transcripts.")
]
Spoken = Annotated[
    str | None,
    typer.Option("--from", metavar="LANG", help="Spoken in the recordings; the teacher tells if not given."),
]


_Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="The corpus, as `train` reads it.")]
_Replace = Annotated[bool, typer.Option("--replace", help="Write anew also what the data have a text for.")]
_Beam = Annotated[int, typer.Option("--beam", metavar="N", min=1, help="Hypotheses kept.")]
_MinSpeech = Annotated[
    float, typer.Option("--min-speech", metavar="P", help="Least voice activity of the speech.")
]
_MaxNoSpeech = Annotated[
    float,
    typer.Option("--max-no-speech", metavar="P", help="Most of the teacher's doubt, where it is unsure too."),
]
_MinLogProbability = Annotated[
    float,
    typer.Option("--min-log-probability", metavar="X", help="Least mean per token, natural logarithm."),
]
_MaxCompression = Annotated[
    float, typer.Option("--max-compression", metavar="X", help="Most bytes over bytes after zlib.")
]
_MaxRepetition = Annotated[
    float, typer.Option("--max-repetition", metavar="P", help="Largest share of a text in loops.")
]
_MaxCharactersPerS = Annotated[
    float, typer.Option("--max-characters-per-s", metavar="X", help="More than anyone can say.")
]
_MaxLengthRatio = Annotated[
    float, typer.Option("--max-length-ratio", metavar="X", help="Of transcript and translation.")
]
_MaxOtherLanguage = Annotated[
    float,
    typer.Option(
        "--max-other-language", metavar="P", help="Most probability of another language, by letters."
    ),
]
_MinLanguage = Annotated[
    float,
    typer.Option("--min-language", metavar="P", help="Least probability of the language spoken."),
]
_BatchSize = Annotated[
    int,
    typer.Option("--batch-size", metavar="N", min=1, help="Utterances at a time; changes no label."),
]


def pseudo_label(
    teacher: Teacher,
    data: Speech,
    to: Targets,
    out: _Out,
    spoken: Spoken = None,
    replace: _Replace = False,
    beam: _Beam = 1,
    min_speech: _MinSpeech = 0.5,
    max_no_speech: _MaxNoSpeech = 0.6,
    min_log_probability: _MinLogProbability = -1.0,
    max_compression: _MaxCompression = 2.4,
    max_repetition: _MaxRepetition = 0.3,
    max_characters_per_s: _MaxCharactersPerS = 60.0,
    max_length_ratio: _MaxLengthRatio = 3.0,
    max_other_language: _MaxOtherLanguage = 0.95,
    min_language: _MinLanguage = 0.5,
    batch_size: _BatchSize = 16,
    engine: shared.Engine = "torch",
    threads: shared.Threads = None,
    offline: shared.Offline = False,
    as_json: shared.Json = False,
) -> None:
    """Label speech; doubtful labels are dropped and counted by reason. The same command goes on where it stopped."""
    shared.set_threads(threads)
    with as_usage(), Bar("starting"):
        from sprachbund.compression.filters import FilterOptions
        from sprachbund.compression.pseudo_labels import LabelOptions
        from sprachbund.decoding.options import GuardOptions

        filters = FilterOptions(
            guard=GuardOptions(
                min_speech_probability=min_speech,
                max_no_speech_probability=max_no_speech,
                min_mean_log_probability=min_log_probability,
                hopeless_mean_log_probability=min_log_probability,
                max_compression_ratio=max_compression,
                max_repetition=max_repetition,
                max_characters_per_s=max_characters_per_s,
            ),
            max_length_ratio=max_length_ratio,
            max_other_language=max_other_language,
            min_language_probability=min_language,
        )
        options = LabelOptions(
            targets=tuple(listed(to)), replace=replace, batch_size=batch_size, filters=filters
        )
    done = run_labels(teacher, data, out, options, spoken=spoken, beam=beam, engine=engine, offline=offline)
    if as_json:
        from dataclasses import asdict

        return print_json({**asdict(done), "out": str(out)})
    typer.echo(as_text(done))
    say(f"the corpus is in {out}; labels.*.json there lists what was dropped")


def run_labels(
    teacher: str,
    data: Sequence[Path],
    out: Path,
    options: "LabelOptions",
    *,
    spoken: str | None,
    beam: int = 1,
    engine: Any = "torch",
    offline: bool = False,
) -> "Labelled":
    """Label speech into a corpus; see `sprachbund.compression.pseudo_labels`."""
    from dataclasses import replace

    from sprachbund.compression.pseudo_labels import check_targets, pseudo_label
    from sprachbund.compression.speech import open_source
    from sprachbund.decoding.options import NONE, DecodingOptions, GuardOptions
    from sprachbund.evaluation.hashes import model_hash
    from sprachbund.evaluation.hypotheses import Decoder
    from sprachbund.evaluation.identifier import identifier_for
    from sprachbund.models.card import Card
    from sprachbund.models.directory import load, locate
    from sprachbund.runtime.engine import engine_for
    from sprachbund.text.languages import parse_language

    with as_usage(), Bar("loading the teacher"):
        directory = locate(teacher, offline=offline)
        family = engine_for(load(directory, offline=True), engine, directory=directory).family
        written = {target for _, target in family.pairs()}
        options = replace(options, targets=tuple(parse_language(t, written) for t in options.targets))
        language = None if spoken is None else parse_language(spoken, family.source_languages)
        sources = [open_source(path, language, family.max_window_s) for path in data]
        check_targets(family, sources, options.targets)
    decoding = DecodingOptions(beam_size=beam, draft=NONE, guard=GuardOptions(enabled=False))
    card = Card.read(directory)
    with resumable(out), Bar("labelling", seconds=True) as bar:
        return pseudo_label(
            family,
            Decoder(family, decoding),
            sources,
            out,
            options,
            identifier=identifier_for({*options.targets, *family.source_languages}),
            name=card.name if card else directory.name,
            settings={"teacher": model_hash(directory), "spoken": language, "beam": beam, "engine": engine},
            progress=bar.update,
        )


def default_labels(to: Sequence[str]) -> "LabelOptions":
    """Every text written anew, filtered as by default."""
    from sprachbund.compression.pseudo_labels import LabelOptions

    return LabelOptions(targets=tuple(listed(to)), replace=True)


def as_text(done: "Labelled") -> str:
    """A row for each language: how many labels were kept, and how many dropped for what."""
    from sprachbund.compression.label_records import KEPT

    kinds = sorted({kind for counts in done.counts.values() for kind in counts} - {KEPT})
    rows = [
        [tag, *(str(counts.get(kind, 0)) for kind in (KEPT, *kinds))] for tag, counts in done.counts.items()
    ]
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(done.left_out.items()))
    parts = [
        table(rows, ["language", KEPT, *kinds]),
        f"{done.utterances} utterances in the corpus; left out: {left_out or 'none'}",
    ]
    return "\n".join(parts)
