"""`sprachbund router FILE`: a picture of where a model with experts by language sent each moment of speech."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprachbund.cli.console import Bar, as_usage, listed, print_json, say, table
from sprachbund.errors import SprachbundError

if TYPE_CHECKING:
    import numpy as np

    from sprachbund.data.manifest import Utterance
    from sprachbund.evaluation.router_figure import Labelled, RouterPicture

_FORMATS = (".png", ".svg", ".pdf")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(help="Draw where a model with experts by language sends speech.")(router)


def router(
    audio: Annotated[
        Path, typer.Argument(metavar="FILE", help="A recording; or a corpus, with --utterance.")
    ],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="A speech LLM: its directory.")],
    utterance: Annotated[
        str | None,
        typer.Option("--utterance", metavar="ID", help="Of the corpus; its words stand under the picture."),
    ] = None,
    languages: Annotated[
        list[str] | None,
        typer.Option("--languages", metavar="LANG,…", help="That may be spoken; all if not given."),
    ] = None,
    to: Annotated[
        str, typer.Option("--to", metavar="LANG", help="Language of the words under a recording.")
    ] = "transcribe",
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The picture: png, svg or pdf.")] = Path(
        "router.png"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the spans as a JSON object.")] = False,
) -> None:
    """Draw groups by frames, with the words under them."""
    from sprachbund.evaluation.router_figure import draw_router

    with as_usage():
        if out.suffix.lower() not in _FORMATS:
            raise SprachbundError(f"--out {out} is no picture; end it with {', '.join(_FORMATS)}")
        samples, told, title = _read(audio, utterance)
    with Bar(f"loading {model}"):
        picture = _routed(model, samples, told, title, listed(languages), to)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_router(picture, out)
    rows = [[f"{s.start_s:.2f}", f"{s.end_s:.2f}", s.language] for s in picture.heard]
    if as_json:
        spans = [{"start_s": s.start_s, "end_s": s.end_s, "language": s.language} for s in picture.heard]
        return print_json({"picture": str(out), "spans": spans})
    typer.echo(table(rows, ["from", "to", "heard"]))
    say(f"the picture is in {out}")


def _read(audio: Path, utterance: str | None) -> "tuple[np.ndarray, list[Labelled], str]":
    """Samples, what is known to be said in them, and a title."""
    from sprachbund.audio.load import open_audio
    from sprachbund.data.manifest import Manifest

    if not audio.is_dir():
        if utterance is not None:
            raise SprachbundError(
                f"--utterance {utterance} is of a corpus, and {audio} is none; leave it out"
            )
        import numpy as np

        return np.concatenate(list(open_audio(str(audio)).blocks())), [], audio.name
    manifest = Manifest(audio)
    if utterance is None:
        raise SprachbundError(
            f"{audio} is a corpus; name one of its {len(manifest)} with --utterance, as {manifest[0].id}"
        )
    found = next((i for i in range(len(manifest)) if manifest[i].id == utterance), None)
    if found is None:
        raise SprachbundError(
            f"{audio} has no utterance {utterance!r}; `sprachbund data show {audio}` lists some"
        )
    return manifest.samples(found), _said(manifest[found]), utterance


def _said(utterance: "Utterance") -> "list[Labelled]":
    """The spans of an utterance with their words; the whole where it has none."""
    from sprachbund.data.language_spans import timed_spans
    from sprachbund.evaluation.router_figure import Labelled

    spans: list[dict[str, Any]] = list(utterance.custom.get("spans") or [])
    if not timed_spans(utterance):
        return [
            Labelled(
                start_s=0.0, end_s=utterance.duration_s, language=utterance.language, text=utterance.text
            )
        ]
    return [
        Labelled(start_s=s["start_s"], end_s=s["end_s"], language=s["language"], text=s.get("text", ""))
        for s in spans
    ]


def _routed(
    name: str, samples: "np.ndarray", told: "list[Labelled]", title: str, languages: list[str], to: str
) -> "RouterPicture":
    import torch

    from sprachbund.api import load
    from sprachbund.audio.constants import SAMPLE_RATE
    from sprachbund.decoding.encoding import encode
    from sprachbund.decoding.pairs import read_request
    from sprachbund.evaluation.router_figure import Labelled, RouterPicture
    from sprachbund.models.speech_llm import RoutedMemory, SpeechLLM

    model = load(name)
    family = model.family
    if not isinstance(family, SpeechLLM):
        raise SprachbundError(
            f"{name} is of the family {family.name!r}, which has no experts by language; name a speech LLM"
        )
    duration_s = len(samples) / SAMPLE_RATE
    request = read_request(family, source=None, targets=[to], allowed=languages or None)
    with torch.inference_mode():
        memory = encode(family, family.features([samples]), [None], [request.allowed])
    assert isinstance(memory, RoutedMemory)
    if not told:
        found = model.translate(samples, to, languages=languages or None, sample_rate=SAMPLE_RATE)
        told = [
            Labelled(start_s=s.start_s, end_s=s.end_s, language=s.target_language, text=s.text)
            for s in found.segments
        ]
    heard = [
        Labelled(start_s=a, end_s=b, language=tag) for a, b, tag in family.spans(memory, [duration_s])[0]
    ]
    return RouterPicture(
        mass=memory.group_probs[0].float().numpy(),
        groups=["+".join(tags) for tags in family.config.projector.groups],
        frame_s=family.frame_s,
        duration_s=duration_s,
        heard=heard,
        told=told,
        title=title,
    )
