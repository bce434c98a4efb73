"""`sprachbund data`: make and prepare corpora, and look at them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from sprachbund.cli.console import Bar, UsageError, as_usage, listed, print_json, resumable, say, table
from sprachbund.cli.options import OWN_PANEL, Panel, VerbApp, with_options
from sprachbund.data.own_options import OwnOptions

if TYPE_CHECKING:
    from sprachbund.corpora.public import Preparation, Summary
    from sprachbund.data.manifest import Utterances


Workers = Annotated[int, typer.Option("--workers", metavar="N", min=1, help="Processes at a time.")]
RayCluster = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Address of a Ray cluster: auto, host:port, or local for one here; plain processes if not given.",
    ),
]


# `sprachbund data show DIR`: size, languages, licence and some utterances of a corpus.


def show(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A corpus, or a folder of several.")],
    examples: Annotated[int, typer.Option("--examples", metavar="N", min=0, help="Utterances shown.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per corpus.")] = False,
) -> None:
    """Show what a corpus holds."""
    from sprachbund.data.manifest import corpora_in
    from sprachbund.data.shards import open_corpus

    for path in corpora_in(directory) or [directory]:
        description = describe(open_corpus(path), examples)
        if as_json:
            print_json(description)
        else:
            typer.echo(_as_text(description) + "\n")


def check(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A corpus, or a folder of several.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per corpus.")] = False,
) -> None:
    """Read all of a corpus and compare it with its checksums."""
    from sprachbund.data.manifest import corpora_in
    from sprachbund.data.shards import open_corpus

    for path in corpora_in(directory) or [directory]:
        manifest = open_corpus(path)
        with Bar(f"checking {path}") as bar:
            known = manifest.check(bar.update)
        counts = {"utterances": len(manifest), "shards": manifest.num_shards, "with_checksums": known}
        if as_json:
            print_json({"directory": str(path), **counts})
        else:
            without = manifest.num_shards - known
            note = f"; without checksums, only the lengths of {without} were checked" if without else ""
            typer.echo(f"{path} is whole: utterances {len(manifest)}, shards {manifest.num_shards}{note}")


# `sprachbund data overlap TEST TRAIN…`: recordings, sentences and speakers that are in both.


def overlap(
    measured: Annotated[Path, typer.Argument(metavar="TEST", help="Corpus that a model is measured on.")],
    trained: Annotated[
        list[Path],
        typer.Argument(metavar="TRAIN…", help="Corpora that it is trained on, or folders of several."),
    ],
    examples: Annotated[
        int, typer.Option("--examples", metavar="N", min=0, help="Pairs of utterances shown of each kind.")
    ] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object with all pairs.")] = False,
) -> None:
    """Look for recordings, sentences and speakers of a test corpus in training corpora."""
    from sprachbund.data.manifest import check_apart, corpora_in
    from sprachbund.data.overlap import overlap as look_for
    from sprachbund.data.shards import open_corpus

    folders = [folder for path in trained for folder in corpora_in(path) or [path]]
    check_apart(folders, [measured])
    with Bar("comparing sounds of equal length") as bar:
        both = look_for(open_corpus(measured), [open_corpus(folder) for folder in folders], bar.update)
    if as_json:
        print_json({"directory": str(measured), "trained_on": list(map(str, folders)), **asdict(both)})
        return
    count = sum(both.utterances.values())
    rows = [("in all", count, count), ("of equal sound", len(both.same_sound), count)]
    rows += [("of equal text", len(both.same_text), count)]
    rows += [
        (f"  {language or 'no language'}", both.same_text_languages[language], both.utterances[language])
        for language in both.same_text_languages
    ]
    rows += [("of a speaker of both", both.same_speaker, count)] if both.named_speaker else []
    cells = [(name, str(part), f"{100 * part / whole:.1f} %") for name, part, whole in rows]
    typer.echo(table(cells, (str(measured), "utterances", "share")))
    for kind, pairs in (("sound", both.same_sound), ("text", both.same_text)):
        for own, other in pairs[:examples]:
            typer.echo(f"equal {kind}: {own} and {other}")


def pack(
    source: Annotated[Path, typer.Argument(metavar="CORPUS", help="Directory of a corpus.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the shards.")],
    codec: Annotated[
        Literal["flac", "opus"],
        typer.Option("--codec", help="flac keeps every sample; opus needs a fraction of its space."),
    ] = "flac",
    shard_utterances: Annotated[
        int, typer.Option("--shard-utterances", metavar="N", min=1, help="Utterances of a shard.")
    ] = 1000,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Of the order of the utterances.")
    ] = 0,
    workers: Workers = 1,
    ray: RayCluster = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Write a corpus as tar shards with compressed sound, which training and evaluation read like any corpus."""
    from sprachbund.data.shards import pack as pack_corpus

    with resumable(out), Bar("packing") as bar:
        shards = pack_corpus(
            source,
            out,
            codec=codec,
            shard_utterances=shard_utterances,
            seed=seed,
            workers=workers,
            ray_address=ray,
            progress=lambda done, total: bar.update(done, total, "utterances"),
        )
    size = sum(shard.recording_bytes for shard in shards.index.shards)
    hours = sum(shard.seconds for shard in shards.index.shards) / 3600
    counts = {"utterances": len(shards), "hours": round(hours, 3), "shards": shards.num_shards, "bytes": size}
    if as_json:
        print_json({"directory": str(out), **counts})
    else:
        typer.echo(
            f"{out}  {len(shards)} utterances, {hours:.2f} h in {shards.num_shards} shards, {size / 2**20:.1f} MiB"
        )


def export(
    source: Annotated[Path, typer.Argument(metavar="CORPUS", help="Directory of a corpus.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="cuts.jsonl or cuts.jsonl.gz, with absolute paths.")
    ],
) -> None:
    """Write a corpus as a CutSet of lhotse, whose recordings are those of the corpus.

    Shards need no export: lhotse opens them with CutSet.from_shar(in_dir="DIR/shards").
    """
    from sprachbund.data.manifest import Manifest
    from sprachbund.util.files import atomic_path

    if not out.name.endswith((".jsonl", ".jsonl.gz")):
        raise UsageError(f"--out is {out}; give a name that ends in .jsonl or .jsonl.gz")
    cuts = Manifest(source.resolve()).cuts()
    with atomic_path(out) as partial:
        # lhotse chooses the form by the name.
        named = partial.with_name(partial.name + "".join(out.suffixes[-2:]))
        cuts.to_file(named)
        named.replace(partial)
    typer.echo(f"{out}")


def info(directory: Path) -> dict[str, Any]:
    """Return the content of `dataset.json`; empty for a corpus without one, whose making was interrupted."""
    from sprachbund.data.manifest import read_info

    return read_info(directory)


def describe(manifest: "Utterances", num_examples: int) -> dict[str, Any]:
    """Return the content of `dataset.json`, and utterances from all over the corpus."""
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
        **manifest.info(),
        **manifest.summary(),
        "examples": examples,
    }


def _as_text(description: dict[str, Any]) -> str:
    lines = [f"{description['directory']}  {description.get('name', '')}".rstrip()]
    legal = {name: dict.fromkeys(_texts(description.get(name))) for name in ("licence", "attribution")}
    lines += [f"{name:11}  {'; '.join(texts)}" for name, texts in legal.items() if texts]
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


# `sprachbund data prepare NAME SOURCE`: one command for each entry of `PREPARATIONS`, made only on demand, since the
# readers import packages that other verbs (`doctor` above all) do without.


class CorpusGroup(TyperGroup):
    """The commands under `data prepare`: those written out, and the public corpora."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        if cmd_name not in self.commands:
            self.commands.update(_commands())
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands, then the corpora with licence and homepage."""
        from sprachbund.corpora.public import PREPARATIONS

        super().format_commands(ctx, formatter)
        with formatter.section("Public corpora (data prepare NAME SOURCE)"):
            formatter.write_dl(
                [(p.name, f"{p.summary}; {p.licence}; {p.homepage}") for p in PREPARATIONS.values()]
            )


def overview(
    context: typer.Context,
    wanted: Annotated[bool, typer.Option("--list", help="Name the public corpora and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --list: print a JSON array.")] = False,
) -> None:
    """Print the public corpora, or refuse `data prepare` without a corpus."""
    from sprachbund.corpora.public import PREPARATIONS

    if context.invoked_subcommand is not None:
        if wanted or as_json:
            raise UsageError("--list stands alone; options of a corpus follow its name")
        return
    if not wanted:
        raise UsageError("no corpus named; --list names the public ones, --help all commands")
    corpora = [
        {"name": p.name, "summary": p.summary, "licence": p.licence, "homepage": p.homepage}
        for p in PREPARATIONS.values()
    ]
    if as_json:
        return print_json(corpora)
    for corpus in corpora:
        typer.echo(f"{corpus['name']}: {corpus['summary']}")
        typer.echo(f"  {corpus['licence']}; {corpus['homepage']}")


def prepare_corpus(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The corpus as downloaded and unpacked.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Gets a folder for each split.")],
    languages: Annotated[
        list[str] | None, typer.Option("--languages", metavar="LANG,…", help="Spoken; all if not given.")
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option("--targets", metavar="LANG,…", help="Of translations; all if not given."),
    ] = None,
    splits: Annotated[
        list[str] | None, typer.Option("--splits", metavar="NAME,…", help="Parts; all if not given.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave recordings out that cannot be read, and list them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Write a public corpus as manifests, a folder for each split."""
    from sprachbund.corpora.public import PREPARATIONS, CorpusOptions

    preparation = PREPARATIONS[str(context.info_name)]
    with resumable(out), Bar(preparation.name) as bar:
        options = CorpusOptions(
            languages=listed(languages),
            targets=listed(targets),
            splits=listed(splits),
            skip_bad=skip_bad,
            progress=lambda part, done, total: bar.update(done, total, f"utterances of {part}"),
        )
        summary = preparation.prepare(source, out, options)
    if as_json:
        print_json(_json(summary))
    else:
        typer.echo(_text(summary, preparation, out))


def _commands() -> dict[str, Any]:
    """A command for each public corpus; hidden, since the group's help lists them by itself."""
    from sprachbund.corpora.public import PREPARATIONS

    commands = {}
    for preparation in PREPARATIONS.values():
        app = VerbApp(add_completion=False, rich_markup_mode=None)
        help_text = f"{preparation.summary}.\n\n{preparation.licence}; {preparation.homepage}"
        app.command(preparation.name, help=help_text, hidden=True)(prepare_corpus)
        commands[preparation.name] = typer.main.get_command(app)
    return commands


def _text(summary: "Summary", preparation: "Preparation", out: Path) -> str:
    """Sizes, how they compare with the published ones, and what was left out, for people."""
    rows = []
    for name, part in summary.parts.items():
        languages = info(out / name).get("languages", [])
        rows.append([str(out / name), f"{part.utterances}", f"{part.hours:.2f}", _tags(languages)])
    lines = [table(rows, ["corpus", "utterances", "hours", "texts in"])]
    lines += ["", f"licence: {preparation.licence} ({preparation.homepage})"]
    lines += summary.checks or ["its makers state no sizes that these parts could be compared with"]
    if clipped := sum(part.clipped for part in summary.parts.values()):
        lines.append(_clipped(clipped))
    if summary.left_out:
        left_out = [[reason, f"{count}"] for reason, count in sorted(summary.left_out.items())]
        lines += ["", table(left_out, ["left out, listed in left_out.tsv", "entries"])]
    return "\n".join(lines)


def _clipped(count: int) -> str:
    """The line about clipped sound."""
    return f"clipped sound, with samples at full scale in a row: {count} utterances"


def _json(summary: "Summary") -> dict[str, Any]:
    parts = {
        name: {
            "utterances": part.utterances,
            "hours": part.hours,
            "left_out": dict(part.left_out),
            "clipped": part.clipped,
        }
        for name, part in summary.parts.items()
    }
    return {"name": summary.name, "parts": parts, "checks": list(summary.checks)}


Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the corpus.")]
Packages = Annotated[
    Path | None,
    typer.Option(
        "--source", metavar="DIR", help="Debian packages or their unpacked tree; apt-get if not given."
    ),
]
Languages = Annotated[
    list[str] | None, typer.Option("--languages", metavar="LANG,…", help="Languages taken.")
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Of everything drawn.")]
Synthesizers = Annotated[
    list[str] | None,
    typer.Option(
        "--synthesizers",
        metavar="NAME,…",
        help="Who speaks: espeak-ng, festival, flite, pico, each where it has a voice; espeak-ng if not given.",
    ),
]
Sentences = Annotated[
    Path | None,
    typer.Option("--sentences", metavar="DIR", help="Tables of `data make sentences`, said too."),
]
SentenceShare = Annotated[
    float | None,
    typer.Option(
        "--sentence-share",
        metavar="X",
        min=0,
        max=1,
        help="Share of the utterances that say them; 0.5 if not given.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]

_BEFORE = {
    "synthesizers": ["espeak-ng"],
    "voices": [],
    "augmentation": {"tone_probability": 0.0, "tone_db": 10.0},
}
"""Settings of corpora that were begun before there was a choice."""

MEAN_UTTERANCE_S = 2.4
"""Mean of the phrasebook's training part, no more exact than `--hours` promises."""


def register(app: typer.Typer) -> None:
    """Add the verb and what stands under it."""
    options: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None}
    data = VerbApp(**options)
    prepare = VerbApp(
        help="Bring recordings into the form that training reads.",
        cls=CorpusGroup,
        invoke_without_command=True,
        **options,
    )
    prepare.callback()(overview)
    make = VerbApp(help="Make corpora that need no recordings of one's own.", **options)
    prepare.command("asterisk", help="The recorded prompts of Debian's asterisk packages.")(asterisk)
    prepare.command("folder", help="Audio files with NAME.txt (and NAME.de.txt …) beside them.")(
        with_options(folder)
    )
    prepare.command("tsv", help="A table with tabs, a line for each recording.")(with_options(tsv))
    prepare.command("csv", help="A table with commas, such as the metadata.csv of a folder of audio.")(
        with_options(csv)
    )
    prepare.command("commonvoice", help="A table of Common Voice, with its clips beside it.")(
        with_options(commonvoice)
    )
    prepare.command("kaldi", help="A data folder of Kaldi: wav.scp, text, segments …")(with_options(kaldi))
    prepare.command("lhotse", help="A CutSet of lhotse, as JSON lines.")(with_options(lhotse))
    prepare.command("nemo", help="A manifest of NeMo, as JSON lines.")(with_options(nemo))
    prepare.command("huggingface", help="Tables of parquet or arrow with an audio column.")(
        with_options(huggingface)
    )
    make.command("phrasebook", help="Phrases in many languages, spoken by a synthesiser.")(
        with_options(phrasebook)
    )
    make.command("telephone", help="Recorded prompts, composed into new utterances.")(with_options(telephone))
    make.command("outside", help="Sound that a model of a narrow domain does not understand.")(
        with_options(outside)
    )
    make.command("sentences", help="Tables of sentences in many languages, for the phrasebook to say.")(
        sentences
    )
    make.command("mixed", help="Phrases that mix two languages, with the time of every switch.")(
        with_options(mixed)
    )
    data.add_typer(prepare, name="prepare")
    data.add_typer(make, name="make")
    data.command("show", help="What a corpus holds.")(show)
    data.command("check", help="Whether a corpus is whole, by its checksums.")(check)
    data.command("overlap", help="What a test corpus shares with training corpora.")(overlap)
    data.command("pack", help="Write a corpus as tar shards, for large runs and object stores.")(pack)
    data.command("export", help="Write a corpus as a CutSet of lhotse.")(export)
    app.add_typer(data, name="data")


def asterisk(out: Out, source: Packages = None, languages: Languages = None, as_json: AsJson = False) -> None:
    """Write the recorded prompts as train, dev, test and unheard."""
    from sprachbund.corpora.asterisk.packages import LANGUAGES
    from sprachbund.corpora.asterisk.writing import cleaning_table, prepare

    with Bar("preparing prompts") as bar:
        done = prepare(out, source, languages=listed(languages) or LANGUAGES, progress=bar.update)
    if as_json:
        return print_json(done)
    typer.echo(cleaning_table(done["cleaning"]))
    _print_parts(out)


def _tag_of(language: str | None) -> str | None:
    """The tag of what was typed as `--language`; None where nothing was."""
    from sprachbund.text.languages import tag_of

    with as_usage():
        return None if language is None else tag_of(language, "--language")


def folder(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Looked through with its subfolders.")],
    out: Out,
    language: Annotated[
        str, typer.Option("--language", metavar="LANG", callback=_tag_of, help="Language spoken.")
    ],
    as_json: AsJson = False,
    *,
    options: Annotated[OwnOptions, Panel(OWN_PANEL)],
) -> None:
    """Write audio files and the texts beside them as a corpus."""
    from sprachbund.data.own import read_folder

    _prepare_own(lambda: read_folder(directory, language), directory, out, options, as_json)


Ignored = Annotated[
    list[str] | None,
    typer.Option("--ignore", metavar="COLUMN,…", help="Columns that are not read."),
]


def tsv(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Columns path, language, text, translation_de …")
    ],
    out: Out,
    language: Annotated[
        str | None,
        typer.Option(
            "--language", metavar="LANG", callback=_tag_of, help="Language spoken, where no column says it."
        ),
    ] = None,
    ignored: Ignored = None,
    as_json: AsJson = False,
    *,
    options: Annotated[OwnOptions, Panel(OWN_PANEL)],
) -> None:
    """Write the recordings of a table as a corpus."""
    from sprachbund.data.own import read_table

    _prepare_own(lambda: read_table(file, language, ignored=listed(ignored)), file, out, options, as_json)


Source = Annotated[
    Path, typer.Argument(metavar="SOURCE", help="Table or folder, see the command's description.")
]
Spoken = Annotated[
    str | None,
    typer.Option(
        "--language", metavar="LANG", callback=_tag_of, help="Language spoken, where the data do not say it."
    ),
]


def csv(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Columns path or file_name, text or transcription, translation_de …"
        ),
    ],
    out: Out,
    language: Spoken = None,
    ignored: Ignored = None,
    as_json: AsJson = False,
    *,
    options: Annotated[OwnOptions, Panel(OWN_PANEL)],
) -> None:
    """Write the recordings of a table with commas as a corpus: columns path or file_name, language, text …"""
    from sprachbund.data.own import read_table

    _prepare_own(
        lambda: read_table(source, language, commas=True, ignored=listed(ignored)),
        source,
        out,
        options,
        as_json,
    )


def commonvoice(
    source: Annotated[
        Path,
        typer.Argument(metavar="TABLE", help="A table, such as de/validated.tsv, with clips beside it."),
    ],
    out: Out,
    language: Spoken = None,
    as_json: AsJson = False,
    *,
    options: Annotated[OwnOptions, Panel(OWN_PANEL)],
) -> None:
    """Write the clips of a table of Common Voice, such as de/validated.tsv, as a corpus."""
    from sprachbund.data.importers import read_common_voice

    _prepare_own(lambda: read_common_voice(source, language), source, out, options, as_json)


def kaldi(
    source: Source,
    out: Out,
    language: Spoken = None,
    as_json: AsJson = False,
    *,
    options: Annotated[OwnOptions, Panel(OWN_PANEL)],
) -> None:
    """Write a data folder of Kaldi as a corpus; text.de and the like are translations."""
    from sprachbund.data.importers import read_kaldi

    _prepare_own(lambda: read_kaldi(source, language), source, out, options, as_json)


def lhotse(
    source: Source,
    out: Out,
    language: Spoken = None,
    as_json: AsJson = False,
    *,
    options: Annotated[OwnOptions, Panel(OWN_PANEL)],
) -> None:
    """Write the supervisions of a CutSet, cuts.jsonl or cuts.jsonl.gz, as a corpus."""
    from sprachbund.data.importers import read_lhotse

    _prepare_own(lambda: read_lhotse(source, language), source, out, options, as_json)


def nemo(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="Fields audio_filepath, text, offset, duration, lang …")
    ],
    out: Out,
    language: Spoken = None,
    as_json: AsJson = False,
    *,
    options: Annotated[OwnOptions, Panel(OWN_PANEL)],
) -> None:
    """Write the recordings of a manifest of NeMo as a corpus; lines with another target_lang are translations."""
    from sprachbund.data.importers import read_nemo

    _prepare_own(lambda: read_nemo(source, language), source, out, options, as_json)


def huggingface(
    source: Source,
    out: Out,
    language: Spoken = None,
    text: Annotated[
        str | None,
        typer.Option(
            "--text-column", metavar="NAME", help="Of the transcripts; the usual names if not given."
        ),
    ] = None,
    translations: Annotated[
        list[str] | None,
        typer.Option("--translation", metavar="LANG=COLUMN,…", help="Columns of translations."),
    ] = None,
    as_json: AsJson = False,
    *,
    options: Annotated[OwnOptions, Panel(OWN_PANEL)],
) -> None:
    """Write the rows of a dataset of the Hugging Face hub as a corpus: of a local table, a folder or a pattern."""
    from sprachbund.data.importers import read_hugging_face

    columns = {}
    for one in listed(translations):
        tag, equals, column = one.partition("=")
        if not (tag and equals and column):
            raise UsageError(f"--translation {one}: give LANG=COLUMN, such as de=german")
        columns[tag] = column
    _prepare_own(
        lambda: read_hugging_face(source, language, text=text, translations=columns),
        source,
        out,
        options,
        as_json,
    )


def phrasebook(
    out: Out,
    edition: Annotated[
        str, typer.Option("--edition", metavar="NAME", help="standard, bundled or tiny.")
    ] = "standard",
    utterances: Annotated[
        int | None, typer.Option("--utterances", metavar="N", min=1, help="Size of the training part.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option("--hours", metavar="X", min=0.001, help="About so many, in its place.")
    ] = None,
    heldout: Annotated[
        int | None,
        typer.Option("--heldout", metavar="N", min=1, help="Sentences per language in dev and test."),
    ] = None,
    languages: Languages = None,
    synthesizers: Synthesizers = None,
    tables: Sentences = None,
    sentence_share: SentenceShare = None,
    seed: Seed = None,
    workers: Workers = 2,
    ray: RayCluster = None,
) -> None:
    """Render an edition of the phrasebook; changed values make it an edition of your own."""
    from sprachbund.corpora import editions
    from sprachbund.data.synthesisers import check_synthesizers
    from sprachbund.util.files import files_sha256

    if hours is not None:
        if utterances is not None:
            raise UsageError(
                f"--utterances {utterances} and --hours {hours:g} both say the size of the training part; leave one out"
            )
        utterances = round(hours * 3600 / MEAN_UTTERANCE_S)
    if sentence_share is not None and tables is None:
        raise UsageError(
            f"--sentence-share {sentence_share:g} is of the tables of --sentences, which is not given; add it, or "
            "leave both out"
        )
    changes = {
        "train_utterances": utterances,
        "heldout_sentences": heldout,
        "languages": tuple(listed(languages)) or None,
        "synthesizers": tuple(listed(synthesizers)) or None,
        "sentences": tables,
        "sentence_share": 0.5 if tables and sentence_share is None else sentence_share,
        "seed": seed,
    }
    with as_usage():
        chosen = editions.edition(
            edition, **{key: value for key, value in changes.items() if value is not None}
        )
        voices = check_synthesizers(chosen.synthesizers, chosen.languages)
    settings = asdict(chosen) | {"voices": voices}
    # The tables by what is in them, so that a folder of corpora can be moved and goes on there.
    del settings["sentences"]
    settings["sentences_sha256"] = files_sha256(tables.glob("*.tsv")) if tables else None
    _begin(out, "phrasebook", settings)
    with resumable(out), Bar(f"phrasebook/{edition}") as bar:
        editions.make_edition(out, chosen, workers=workers, ray_address=ray, progress=_labelled(bar))
    _print_parts(out)


def sentences(
    out: Out,
    sources: Annotated[
        list[Path] | None,
        typer.Argument(metavar="WHEEL", help="Wheels, zip files or folders with translations."),
    ] = None,
    composed: Annotated[
        int, typer.Option("--composed", metavar="N", min=0, help="Drawings of composed everyday sentences.")
    ] = 36_000,
    prompts: Packages = None,
    languages: Languages = None,
    seed: Seed = None,
) -> None:
    """Write sentences of message catalogues, and composed ones, as tables.

    The wording that the telephone corpus tests is left out, so its packages are read too.
    """
    from sprachbund.corpora.asterisk.prompts import load_prompt_set
    from sprachbund.corpora.catalogues import make_sentences
    from sprachbund.corpora.wording import LANGUAGES

    tested = load_prompt_set(prompts, cache=out / ".packages")
    without = [
        texts["en"]
        for name, texts in tested.texts.items()
        if "en" in texts and tested.split_of_prompt(name) != "train"
    ]
    counts = make_sentences(
        sources or [],
        tuple(listed(languages)) or LANGUAGES,
        out,
        composed=composed,
        seed=seed or 0,
        without=without,
    )
    typer.echo(
        table([[f"{out / part}.tsv", f"{count}"] for part, count in counts.items()], ["table", "sentences"])
    )


def telephone(
    out: Out,
    source: Packages = None,
    utterances: Annotated[
        int | None, typer.Option("--utterances", metavar="N", min=1, help="Size of the training part.")
    ] = None,
    heldout: Annotated[
        int | None, typer.Option("--heldout", metavar="N", min=1, help="Size of each composed held-out part.")
    ] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option("--leave-out", metavar="SPEAKER,…", help="Speakers not trained on.")
    ] = None,
    languages: Languages = None,
    synthesizers: Synthesizers = None,
    seed: Seed = None,
    workers: Workers = 2,
    ray: RayCluster = None,
) -> None:
    """Compose utterances from the recorded prompts."""
    from sprachbund.corpora.telephone import Telephone, make_telephone
    from sprachbund.data.synthesisers import check_synthesizers
    from sprachbund.util.files import file_sha256

    changes = {
        "train_utterances": utterances,
        "heldout_utterances": heldout,
        "leave_out": tuple(listed(leave_out)) or None,
        "languages": tuple(listed(languages)) or None,
        "synthesizers": tuple(listed(synthesizers)) or None,
        "seed": seed,
    }
    options = Telephone(**{key: value for key, value in changes.items() if value is not None})  # type: ignore[arg-type]
    with as_usage():
        voices = check_synthesizers(options.synthesizers, options.languages)
    settings = asdict(options) | {"voices": voices, "pieces": file_sha256(options.pieces)}
    _begin(out, "telephone", settings)
    with resumable(out), Bar("telephone") as bar:
        make_telephone(out, options, source=source, workers=workers, ray_address=ray, progress=_labelled(bar))
    _print_parts(out)


def outside(
    out: Out,
    per_kind: Annotated[
        int | None,
        typer.Option("--per-kind", metavar="N", min=1, help="Utterances of each kind in each part."),
    ] = None,
    seed: Seed = None,
    workers: Workers = 2,
    ray: RayCluster = None,
) -> None:
    """Make open talk, other languages, music, songs, babble and noise, to calibrate a model with."""
    from sprachbund.corpora.outside import Outside, make_outside

    changes = {"per_kind": per_kind, "seed": seed}
    options = Outside(**{key: value for key, value in changes.items() if value is not None})
    _begin(out, "outside", asdict(options))
    with resumable(out), Bar("outside") as bar:
        make_outside(out, options, workers=workers, ray_address=ray, progress=_labelled(bar))
    _print_parts(out)


def mixed(
    out: Out,
    pairs: Annotated[
        list[str] | None,
        typer.Option("--mixed", metavar="MAIN+EMBEDDED,…", help="Languages mixed; es+en,en+es if not given."),
    ] = None,
    languages: Annotated[
        list[str] | None,
        typer.Option("--languages", metavar="LANG,…", help="Of the texts; en,es,de if not given."),
    ] = None,
    utterances: Annotated[
        int | None, typer.Option("--utterances", metavar="N", min=1, help="Size of each training part.")
    ] = None,
    heldout: Annotated[
        int | None,
        typer.Option("--heldout", metavar="N", min=1, help="Per pair, or language, in dev and test."),
    ] = None,
    spliced: Annotated[
        int | None,
        typer.Option("--spliced", metavar="N", min=1, help="Also splice recorded prompts; N for training."),
    ] = None,
    source: Packages = None,
    seed: Seed = None,
    workers: Workers = 2,
    ray: RayCluster = None,
) -> None:
    """Render code-switched sentences and their monolingual part."""
    from sprachbund.corpora.mixed import MixedSpeechOptions, make_mixed, read_pair

    if source is not None and spliced is None:
        raise UsageError(
            "--source is of recorded prompts, which are used with --spliced N; add it, or leave both out"
        )
    with as_usage():
        changes = {
            "pairs": tuple(map(read_pair, listed(pairs))) or None,
            "languages": tuple(listed(languages)) or None,
            "train_utterances": utterances,
            "heldout_utterances": heldout,
            "spliced_utterances": spliced,
            "seed": seed,
        }
        options = MixedSpeechOptions(**{key: value for key, value in changes.items() if value is not None})  # type: ignore[arg-type]
    _begin(out, "mixed", asdict(options))
    with resumable(out), Bar("mixed") as bar:
        make_mixed(out, options, source=source, workers=workers, ray_address=ray, progress=_labelled(bar))
    _print_parts(out)


def _begin(out: Path, corpus: str, settings: dict[str, Any]) -> None:
    """Begin to fill a folder, or see that it was begun with the same settings."""
    from sprachbund.data.begun import begin

    with as_usage():
        begin(out, {"corpus": corpus} | settings, before={"corpus": corpus} | _BEFORE)


def _labelled(bar: Bar) -> Callable[[str, int, int], None]:
    return lambda what, done, total: bar.update(done, total, what)


def _prepare_own(
    read: Callable[[], Any], source: Path, out: Path, options: OwnOptions, as_json: bool
) -> None:
    from sprachbund.data.own import SKIPPED, prepare_own

    if not options.name:
        options = replace(
            options, name=source.resolve().name if source.is_dir() else source.stem.replace("*", "")
        )
    with resumable(out), Bar("preparing") as bar:
        prepared = prepare_own(read(), out, options, progress=bar.update)
    for fault in prepared.skipped:
        say(f"skipped: {fault}")
    if prepared.skipped:
        say(f"{len(prepared.skipped)} skipped; they are listed in {out / SKIPPED}")
    if prepared.clipped:
        say(_clipped(prepared.clipped))
    if prepared.unchecked:
        say(
            f"{prepared.unchecked} utterances were there, made by an earlier version; whether their recordings have "
            "changed since cannot be checked; name a new folder if so"
        )
    if as_json:
        skipped = [{"where": fault.where, "reason": fault.reason} for fault in prepared.skipped]
        return print_json(
            {
                "utterances": prepared.utterances,
                "skipped": skipped,
                "clipped": prepared.clipped,
                "unchecked": prepared.unchecked,
            }
        )
    _print_parts(out)


def _print_parts(out: Path) -> None:
    """Name every part written, with its size and languages."""
    from sprachbund.data.manifest import corpora_in

    infos = {path: info(path) for path in corpora_in(out)}
    rows = [
        [
            str(path),
            f"{info.get('utterances', 0)}",
            f"{info.get('hours', 0):.2f}",
            _tags(info.get("languages", [])),
        ]
        for path, info in infos.items()
    ]
    typer.echo(table(rows, ["corpus", "utterances", "hours", "texts in"]))


def _tags(languages: Iterable[str]) -> str:
    """Tags of languages; those of three letters, which not everybody knows, with their names."""
    from sprachbund.text.languages import language_name, primary

    return " ".join(tag if len(primary(tag)) == 2 else f"{tag} ({language_name(tag)})" for tag in languages)
