"""Where the recorded prompts of the training speakers can be cut between words; writes `corpora/asterisk/pieces.tsv`.

    python -m scripts.prompt_pieces --packages runs/bundled/corpora/telephone/.packages

A model aligns the transcript of each prompt with its frames (the best path of CTC). Between two words, the quietest
10 ms from the last piece of one to the first piece of the next are a cut if they are quiet enough. What lies between
two cuts is kept if it is as long as its words, and the model, which hears nothing else then, writes something of them
and not more. `data make telephone` joins such pieces to sentences that nobody said, so that a model learns what words
sound like and not which prompts there are.
"""

import argparse
from collections.abc import Iterator
from itertools import groupby, pairwise
from pathlib import Path

import jiwer
import numpy as np
import torch

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.corpora.asterisk.prompts import (
    FRAME_S,
    PIECES,
    Prompt,
    PromptSet,
    RecordedPiece,
    frame_powers_db,
    is_clip,
    load_prompt_set,
    without_rumble,
    write_pieces,
)
from sprachbund.corpora.telephone import is_known_only_in_text
from sprachbund.models.conformer import Conformer
from sprachbund.models.conformer.io import load
from sprachbund.models.io import locate
from sprachbund.text.tokenizer import BLANK

FRAME = round(FRAME_S * SAMPLE_RATE)
QUIET_DB = -15.0
"""A cut is this far below the loud frames of the prompt (their 95th percentile)."""
MIN_PIECE_S, MAX_PIECE_S = 0.2, 4.0
MAX_CHARACTER_ERRORS = 0.85
MOST_TOO_LONG = 1.3
"""The model may miss sounds of a piece without its context; if it hears more than was said, the cut is wrong."""
CHARACTERS_PER_S = (4.0, 22.0)
MAX_PROMPT_S = 15.0


def main() -> None:
    """Read the command line and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--packages", type=Path, help="packages, or their folder; fetched if not there")
    parser.add_argument("--model", default="bundled", help="a conformer with a CTC head")
    parser.add_argument("--out", type=Path, default=PIECES)
    given = parser.parse_args()
    model = load(locate(given.model)).eval()
    prompts = load_prompt_set(None, cache=given.packages)
    used = [prompt for prompt in prompts.prompts if is_used(prompt, prompts)]
    pieces = [piece for prompt in used for piece in pieces_of(model, prompt)]
    write_pieces(pieces, given.out)
    print(f"{given.out}: {len(pieces)} pieces of {len(used)} prompts")


def is_used(prompt: Prompt, prompts: PromptSet) -> bool:
    """Whether a prompt is trained on, and has words to cut between.

    Args:
        prompt: one of `prompts`.
        prompts: all of them, with their split.
    """
    in_training = (
        not prompt.held_out
        and not is_known_only_in_text(prompt)
        and prompts.split_of_prompt(prompt.name) == "train"
    )
    is_sentence = not is_clip(prompt.name) and len(prompt.text.split()) > 1
    return in_training and is_sentence and prompt.duration_s <= MAX_PROMPT_S


def pieces_of(model: Conformer, prompt: Prompt) -> Iterator[RecordedPiece]:
    """The pieces of a prompt that can be told apart and are understood alone.

    Args:
        model: a conformer with a CTC head.
        prompt: of a language that the model hears.
    """
    samples = without_rumble(prompt.load())
    words = prompt.text.split()
    cuts = find_cuts(model, samples, words)
    if cuts is None:
        return
    for (first, start), (last, end) in pairwise(cuts):
        part, text = samples[start:end], " ".join(words[first:last])
        if MIN_PIECE_S <= len(part) / SAMPLE_RATE <= MAX_PIECE_S and is_plausible(model, part, text):
            yield RecordedPiece(
                speaker=prompt.speaker,
                prompt=prompt.name,
                start_s=start / SAMPLE_RATE,
                end_s=end / SAMPLE_RATE,
                text=text,
            )


def find_cuts(model: Conformer, samples: np.ndarray, words: list[str]) -> list[tuple[int, int]] | None:
    """(index of the word that begins, sample) of every cut, with both ends; None where the text does not fit.

    Args:
        model: a conformer with a CTC head.
        samples: of the recording (num_samples,).
        words: said in it.
    """
    tokenizer = model.transcript_tokenizer
    tokens = tokenizer.encode(" ".join(words))
    first_of_word = [i for i, token in enumerate(tokens) if tokenizer.piece(token).startswith("\u2581")]
    if len(first_of_word) != len(words):
        return None
    frames = align(transcript_log_probs(model, samples), tokens)
    if frames is None:
        return None
    powers = frame_powers_db(samples)
    loud = float(np.percentile(powers, 95))
    cuts = [(0, 0)]
    for number, token in enumerate(first_of_word[1:], start=1):
        low = round(frames[token - 1] * model.frame_s / FRAME_S)
        high = min(round((frames[token] + 1) * model.frame_s / FRAME_S), len(powers))
        if high <= low:
            continue
        quietest = low + int(powers[low:high].argmin())
        if powers[quietest] <= loud + QUIET_DB:
            cuts.append((number, quietest * FRAME + FRAME // 2))
    return [*cuts, (len(words), len(samples))]


@torch.inference_mode()
def transcript_log_probs(model: Conformer, samples: np.ndarray) -> np.ndarray:
    """Log-probabilities (T, V) of the CTC head."""
    memory = model.encode(model.features([samples]))
    return model.transcript_log_probs(memory)[0].float().numpy()


def is_plausible(model: Conformer, samples: np.ndarray, text: str) -> bool:
    """Whether a piece is as long as its words, and greedy CTC writes something of them and not much more.

    Args:
        model: a conformer with a CTC head.
        samples: of the piece (num_samples,).
        text: said in it.
    """
    low, high = CHARACTERS_PER_S
    if not low <= len(text) * SAMPLE_RATE / len(samples) <= high:
        return False
    best = transcript_log_probs(model, samples).argmax(-1)
    tokens = [token for token, _ in groupby(best.tolist()) if token != BLANK]
    written = model.decode_transcript(tokens)
    not_longer = len(written) <= MOST_TOO_LONG * len(text) + 1
    return not_longer and bool(jiwer.cer(text.lower(), written.lower()) <= MAX_CHARACTER_ERRORS)


def align(log_probs: np.ndarray, tokens: list[int]) -> list[int] | None:
    """The first frame of each token on the best path of CTC (Graves 2006); None where there is none.

    Args:
        log_probs: (T, V), with the blank.
        tokens: U pieces.
    """
    num_frames, states = len(log_probs), [BLANK]
    for token in tokens:
        states += [token, BLANK]
    scores = log_probs[:, states]
    # From two states before: over a blank, between tokens that differ.
    skips = np.array([s > 1 and states[s] not in (BLANK, states[s - 2]) for s in range(len(states))])
    best = np.full(len(states), -np.inf)
    best[:2] = scores[0, :2]
    steps = np.zeros((num_frames, len(states)), np.int8)
    for t in range(1, num_frames):
        one = np.concatenate([[-np.inf], best[:-1]])
        two = np.where(skips, np.concatenate([[-np.inf, -np.inf], best[:-2]]), -np.inf)
        choices = np.stack([best, one, two])
        steps[t] = choices.argmax(0)
        best = choices.max(0) + scores[t]
    state = len(states) - 1 if best[-1] >= best[-2] else len(states) - 2
    if not np.isfinite(best[state]):
        return None
    path = [state]
    for t in range(num_frames - 1, 0, -1):
        state -= int(steps[t, state])
        path.append(state)
    path.reverse()
    return [path.index(2 * number + 1) for number in range(len(tokens))]


if __name__ == "__main__":
    main()
