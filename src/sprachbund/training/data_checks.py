"""What training data can teach, and the texts and utterances in them that cannot be learned as they are.

A model that was trained on other languages keeps its tokenizer, since its weights know its pieces. A letter of a new
language that the pieces lack is learned as unknown, and a reader sees "⁇" at most.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sprachbund.data.loading import Corpus
from sprachbund.data.manifest import Utterances, in_both
from sprachbund.errors import SprachbundError
from sprachbund.text.tokenizer import Tokenizer
from sprachbund.units.lengths import min_ctc_frames
from sprachbund.util.progress import Report

_MOST = 20_000
"""Utterances of a corpus that are looked at."""
_SHOWN = 12
"""Letters that a warning names."""
_WORD_BEGINS = "\u2581"


def _looked_at(corpus: Corpus) -> Iterator[tuple[Utterances, int]]:
    """Manifest and index of every utterance of a corpus, or of `_MOST` evenly over it."""
    for manifest in corpus.manifests:
        for index in manifest.every(-(-len(manifest) * len(corpus.manifests) // _MOST) or 1):
            yield manifest, index


def training_texts(corpus: Corpus) -> Iterator[str]:
    """Texts that a corpus trains with: of all utterances, or of 20,000 evenly over it."""
    for manifest, index in _looked_at(corpus):
        utterance = manifest[index]
        for language in corpus.targets:
            text = utterance.text_in(language) if utterance.language else None
            if text and corpus.examples.row(text, utterance.language, language) is not None:
                yield text


@dataclass(frozen=True, kw_only=True)
class TaughtLanguages:
    """The languages of a recipe that its data hold.

    Attributes:
        spoken: languages that are heard.
        written: target languages with a text.
        pairs: (source, target) languages of the rows that utterances may get; (x, x) is transcription of x.
        unused: other languages that the data have texts in.
        num_seen: utterances whose texts were looked at.
        count: utterances in all.
    """

    spoken: Sequence[str]
    written: Sequence[str]
    pairs: Sequence[tuple[str, str]]
    unused: Sequence[str]
    num_seen: int
    count: int

    def warnings(self, heard: Sequence[str], targets: Sequence[str]) -> list[str]:
        """A line about languages without data, and one about texts that nothing is made of.

        Args:
            heard: languages that the recipe lists as spoken.
            targets: languages that it lists as written.
        """
        among = "" if self.num_seen == self.count else f" among {self.num_seen} of {self.count} utterances"
        silent = [tag for tag in heard if tag not in self.spoken]
        wordless = [tag for tag in targets if tag not in self.written]
        parts = (
            [f"no speech in {', '.join(silent)}, which the model does not learn to hear"] if silent else []
        )
        parts += (
            [f"no text in {', '.join(wordless)}{among}, which it does not learn to write"] if wordless else []
        )
        lines = [f"warning: the training data have {', and '.join(parts)}"] if parts else []
        if self.unused:
            lines.append(
                f"texts in {', '.join(self.unused)} are not used; the recipe does not list them as written"
            )
        return lines


def taught_languages(corpus: Corpus) -> TaughtLanguages:
    """The languages that a corpus trains; texts are those of all utterances, or of 20,000 evenly over it.

    Args:
        corpus: training data.
    """
    texts, pairs, num_seen = set[str](), set[tuple[str, str]](), 0
    for manifest, index in _looked_at(corpus):
        utterance, num_seen = manifest[index], num_seen + 1
        if utterance.language:
            texts |= {tag for tag in (utterance.language, *utterance.translations) if utterance.text_in(tag)}
            pairs |= {(utterance.language, target) for target in corpus.targets_of(utterance)}
    spoken = {tag for manifest in corpus.manifests for tag in manifest.spoken}
    return TaughtLanguages(
        spoken=[tag for tag in corpus.examples.source_languages if tag in spoken],
        written=[tag for tag in corpus.targets if tag in texts],
        pairs=sorted(pairs),
        unused=sorted(texts - {*corpus.targets}),
        num_seen=num_seen,
        count=sum(len(manifest) for manifest in corpus.manifests),
    )


def length_warnings(corpus: Corpus, frame_s: float) -> list[str]:
    """Warnings about transcripts that CTC cannot align.

    They are most of the speech where frames are long and pieces short, and the encoder then learns next to nothing.

    Args:
        corpus: all of its utterances are looked at, or 20,000 evenly over it.
        frame_s: seconds of an encoder's frame.
    """
    count, num_too_long, first = 0, 0, ""
    for manifest, index in _looked_at(corpus):
        utterance = manifest[index]
        needed = min_ctc_frames(corpus.examples.transcript(utterance.text) or [])
        there = math.ceil(float(manifest.durations_s[index]) / frame_s)
        count += needed > 0
        if needed > there:
            num_too_long += 1
            first = first or f"{utterance.id}, {needed} frames wanted and {there} there"
    if not num_too_long:
        return []
    return [
        f"{num_too_long} of {count} transcripts are longer than CTC can align in frames of {1000 * frame_s:g} ms "
        f"(the first is {first}): it learns nothing from them; in a new model, a larger transcript_vocabulary_size "
        "makes shorter ones"
    ]


def text_warnings(texts: Iterable[str], tokenizer: Tokenizer, max_tokens: int) -> list[str]:
    """Warnings about texts that cannot be learned as they are.

    Args:
        texts: texts that are learned.
        tokenizer: tokenizer of the model.
        max_tokens: most tokens of a text.
    """
    count, partly, too_long, lacking = 0, 0, 0, Counter[str]()
    for text in texts:
        count += 1
        unknown = "".join(tokenizer.unknown(text))
        lacking.update(unknown.replace(_WORD_BEGINS, ""))
        partly += bool(unknown)
        too_long += len(tokenizer.encode(text)) > max_tokens
    lines = []
    if partly:
        most = " ".join(letter for letter, _ in lacking.most_common(_SHOWN)) + " …" * (len(lacking) > _SHOWN)
        lines.append(
            f"{partly} of {count} texts hold what the tokenizer has no piece for ({most}): it is learned as "
            "unknown (⁇) and cannot be written"
        )
    if too_long:
        lines.append(f"{too_long} of {count} texts are longer than {max_tokens} tokens: left out")
    return lines


def check_corpus(corpus: Corpus, max_duration_s: float, report: Report) -> None:
    """Report the utterances that are left out, and refuse data of which nothing is left.

    Args:
        corpus: training data.
        max_duration_s: longest utterance that is trained on.
        report: takes the line.

    Raises:
        SprachbundError: nothing is left, or no text of the utterances that are looked at can be learned.
    """
    longest_s, count = corpus.longest_s(max_duration_s), len(corpus.durations_s)
    why = "" if longest_s == max_duration_s else ", which the model takes at once at the slowest speed"
    too_long = int((corpus.durations_s > longest_s).sum())
    if too_long:
        report(f"{too_long} of {count} utterances are longer than {longest_s:g} s{why}: left out")
    if not count:
        raise SprachbundError(
            "the training data have no utterance in the languages of the recipe, "
            f"{', '.join(corpus.examples.source_languages)}; change languages, or the data"
        )
    if too_long == count:
        raise SprachbundError(
            f"no utterance of the training data is left; cut them into pieces of at most {longest_s:g} s"
        )
    rng = np.random.default_rng(0)
    utterances = (manifest[index] for manifest, index in _looked_at(corpus))
    if not any(corpus.rows(one, rng) for one in utterances if one.language):
        raise SprachbundError(
            "no utterance of the training data that was looked at has a text that this model can be trained on: it is "
            f"to write {', '.join(corpus.targets)}; a Whisper that is to translate into other languages than English "
            'needs fine_tuning.prompt = "wanted", and so does a transducer that writes what is spoken'
        )


def report_trained_dev(train: Sequence[Path], dev: Sequence[Path], report: Report) -> None:
    """Report dev data that are trained on too, whose loss cannot tell when a model starts to learn by heart.

    Args:
        train: directories of the training data.
        dev: directories of the dev data.
        report: takes a line for each of both.
    """
    for directory in in_both(train, dev):
        report(
            f"warning: dev data {directory} are trained on too, so their loss is not that of new speech; name others"
        )
