"""An evaluation by several processes: its hypotheses as parts, files that `sprachbund.util.jobs` hands out.

A part holds the lines of some batches, which are the batches of an evaluation by one process. So no hypothesis depends
on the number of processes, nor on how many batches a part has.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from sprachbund.data.shards import open_corpus
from sprachbund.evaluation.hypotheses import (
    BatchDecoder,
    DecodingJob,
    Plan,
    batches,
    in_corpus_order,
    num_no_speech,
    translate_batch,
    translate_no_speech,
)
from sprachbund.evaluation.lines import Line, read_lines
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.models.base import Family
from sprachbund.util.files import write_text
from sprachbund.util.jobs import gpus_of


@dataclass(frozen=True, kw_only=True)
class CorpusPlan:
    """The part of a corpus that is decoded.

    Attributes:
        directory: directory of the corpus.
        name: name of the corpus, as its lines have it.
        plan: utterances and targets.
    """

    directory: Path
    name: str
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class EvaluationParts:
    """The parts of an evaluation; a `sprachbund.util.jobs.Job`.

    Attributes:
        corpora: corpora in the order of the evaluation.
        open_model: loads the model; every process calls it once.
        options: options of the evaluation; the engine is named.
        folder: folder of the parts.
        block: utterances of a part, rounded up to whole batches.
        threads: threads of each process.
    """

    corpora: tuple[CorpusPlan, ...]
    open_model: Callable[[], Family]
    options: EvaluationOptions
    folder: Path
    block: int
    threads: int

    @property
    def gpus(self) -> int:
        """GPUs of each process."""
        return gpus_of(self.options.device)

    @cached_property
    def files(self) -> Sequence[tuple[Path, int]]:
        """Each part, and how many utterances it is of: those of speech first, then sounds without speech."""
        speech = [sum(len(batch) for _, batch in part) for part in self._speech]
        sounds = [len(part) for part in self._sounds]
        return [(self.folder / f"{number:05d}.jsonl", n) for number, n in enumerate([*speech, *sounds])]

    def prepare(self) -> Callable[[int, Callable[[int], None]], None]:
        """Load the model, open the corpora."""
        model = self.open_model()
        decoder = BatchDecoder(model, self.options.decoding)
        manifests = [open_corpus(corpus.directory) for corpus in self.corpora]

        def speech(number: int, progress: Callable[[int], None]) -> Iterator[Line]:
            done = 0
            for corpus, batch in self._speech[number]:
                lines = translate_batch(decoder, manifests[corpus], batch, self.corpora[corpus].name)
                yield from chain.from_iterable(lines[job.index] for job in batch)
                done += len(batch)
                progress(done)

        def make(number: int, progress: Callable[[int], None]) -> None:
            if number < len(self._speech):
                lines = speech(number, progress)
            else:
                sounds = self._sounds[number - len(self._speech)]
                lines = translate_no_speech(model, self.options, slice(sounds.start, sounds.stop))
            write_text(self.files[number][0], "".join(line.to_json() + "\n" for line in lines))

        return make

    def lines(self) -> Iterator[Line]:
        """All lines, in the order of an evaluation by one process: speech, then sounds without speech."""
        written = chain.from_iterable(read_lines(path) for path, _ in self.files)
        for corpus in self.corpora:
            yield from in_corpus_order(corpus.plan, self.options.batch_size, written)
        yield from written

    @cached_property
    def _speech(self) -> Sequence[Sequence[tuple[int, list[DecodingJob]]]]:
        """The batches of each part, with the number of their corpus."""
        every = [
            (number, batch)
            for number, corpus in enumerate(self.corpora)
            for batch in batches(corpus.plan, self.options.batch_size)
        ]
        size = self._batches_of_part
        return [every[start : start + size] for start in range(0, len(every), size)]

    @property
    def _sounds(self) -> Sequence[range]:
        """The sounds of each part, by their numbers."""
        count, size = num_no_speech(self.options), self._batches_of_part * self.options.batch_size
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    @property
    def _batches_of_part(self) -> int:
        return -(-self.block // self.options.batch_size)
