"""Pieces of recorded prompts, cut between words: what `telephone` joins to sentences that nobody said.

`pieces.tsv` says where they are; `scripts/prompt_pieces.py` made it, and only of prompts that are trained on.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.corpora.asterisk.prompts import Prompt, Samples, level, without_rumble
from sprachbund.util.files import write_text

TABLE = Path(__file__).with_name("pieces.tsv")
_COLUMNS = ("speaker", "prompt", "start_s", "end_s", "text")


@dataclass(frozen=True, kw_only=True)
class RecordedPiece:
    """Seconds of a recording as it was delivered, and the words that are said there."""

    speaker: str
    prompt: str
    start_s: float
    end_s: float
    text: str


def write_pieces(pieces: Iterable[RecordedPiece], path: Path = TABLE) -> None:
    """Write a table of pieces.

    Args:
        pieces: of any speakers.
        path: of the table.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
    writer.writerow(_COLUMNS)
    for piece in pieces:
        times = (f"{piece.start_s:.3f}", f"{piece.end_s:.3f}")
        writer.writerow([piece.speaker, piece.prompt, *times, piece.text])
    write_text(path, buffer.getvalue())


def read_pieces(path: Path = TABLE) -> list[RecordedPiece]:
    """The pieces of a table, in its order."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            RecordedPiece(
                speaker=row["speaker"],
                prompt=row["prompt"],
                start_s=float(row["start_s"]),
                end_s=float(row["end_s"]),
                text=row["text"],
            )
            for row in csv.DictReader(file, delimiter="\t")
        ]


def cut_pieces(
    prompts: Sequence[Prompt], pieces: Iterable[RecordedPiece]
) -> Mapping[str, Sequence[tuple[str, Samples]]]:
    """Words and sound (num_samples,) of the pieces, at one level, by speaker.

    Args:
        prompts: recordings that may be used; pieces of others are left out.
        pieces: where they are cut.
    """
    by_name = {(prompt.speaker, prompt.name): prompt for prompt in prompts}
    of_prompt: dict[tuple[str, str], list[RecordedPiece]] = defaultdict(list)
    for piece in pieces:
        of_prompt[piece.speaker, piece.prompt].append(piece)
    cut: dict[str, list[tuple[str, Samples]]] = defaultdict(list)
    for name in sorted(of_prompt.keys() & by_name.keys()):
        samples = without_rumble(by_name[name].load())
        for piece in of_prompt[name]:
            part = samples[round(piece.start_s * SAMPLE_RATE) : round(piece.end_s * SAMPLE_RATE)]
            cut[name[0]].append((piece.text, level(part)))
    return cut
