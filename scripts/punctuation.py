"""Makes the punctuator of the package from nothing: texts of free programs, training, a page of results.

    python -m scripts.punctuation --out runs/punctuation
    python -m scripts.punctuation --out runs/punctuation --report docs/results/punctuation.json

Texts are manuals and the dialogues of games in six languages, from Debian's packages (`apt-get download`, nothing is
installed). Their licences allow changed versions to be passed on: GPL, MPL and CC BY-SA; `training.json` beside the
model names them. A document, which is a page of a manual or a campaign of a game, is in training, dev or test as a
whole, and in all languages alike. One game is in test alone. Training goes on where it was stopped.
"""

import argparse
import gettext
import hashlib
import math
import random
import re
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from html.parser import HTMLParser
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sprachbund.corpora.asterisk.transcripts import read_lines
from sprachbund.models.punctuation.network import (
    PunctuationNetwork,
    PunctuationShape,
    load,
    save,
    word_features,
)
from sprachbund.text.punctuation import (
    CASES,
    ENDS,
    LANGUAGES,
    MARKS,
    FullStop,
    Marked,
    Punctuator,
    read_marked,
    restore,
    split_mark,
)
from sprachbund.util.files import atomic_path, file_sha256, read_json, write_json, write_text

ASIDE = {"freedroidrpg": "another game", "asterisk-core-sounds": "telephone prompts"}
"""Documents of which nothing is learned, and what they are called in the report."""
CAMPAIGNS = {"wesnoth-dw": "test", "wesnoth-trow": "test", "wesnoth-ei": "dev"}
_LIBREOFFICE = [f"libreoffice-help-{tag}" for tag in ("en-us", "de", "es", "fr", "it", "ru")]
_CAMPAIGNS = "data did dm dw ei httt l low nr sof sota sotbe thot trow tsg ttb utbs"
_WESNOTH = [f"wesnoth-1.16-{name}" for name in _CAMPAIGNS.split(" ")]
PACKAGES = {
    "MPL-2.0": _LIBREOFFICE,
    "CC-BY-SA-3.0": [
        "gnome-user-docs",
        "debian-handbook",
        *(f"asterisk-core-sounds-{tag}" for tag in ("en", "es", "fr", "it", "ru")),
    ],
    "GPL-2.0-or-later": [
        *_WESNOTH,
        "installation-guide-amd64",
        *(f"debian-reference-{tag}" for tag in ("en", "de", "es", "fr", "it")),
        "freedroidrpg-data",
    ],
}
"""Debian's packages by the licence of their texts; the handbook is under the GPL, too."""
_TAGS = {"en-us": "en", "en-US": "en", "C": "en", "de-DE": "de", "es-ES": "es", "fr-FR": "fr", "it-IT": "it"}
_TAGS |= {"ru-RU": "ru", **{tag: tag for tag in LANGUAGES}}
_CODES = "en-us|[a-z]{2}-[A-Z]{2}|[a-z]{2}|C"
_LANGUAGE = (
    re.compile(rf"libreoffice/help/({_CODES})/"),
    re.compile(rf"/help/({_CODES})/"),
    re.compile(rf"/html/({_CODES})/"),
    re.compile(rf"installation-guide-amd64/({_CODES})/"),
    re.compile(r"\.([a-z]{2})\.html$"),
    re.compile(r"/locale/([a-z]{2})/LC_MESSAGES/"),
)
SHAPE = PunctuationShape(languages=LANGUAGES, buckets=2**15, embedding=40, width=96)
SEED, WARM_UP = 0, 100
BATCH_WORDS, MOST_WORDS, POOL = 4096, 80, 6400
_CUT = 0.1  # of the examples begin or end within a sentence, as speech that is cut at its longest does
_SENTENCES = (1, 1, 1, 2, 2, 3, 4)
_SAVE_STEPS = 100
_EPOCHS = 1000  # more than a stage has, so that each has epochs of its own
MOST_EXAMPLES = 1000  # of a language and kind of text, drawn for the report


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of training, with texts in proportions of its own.

    Attributes:
        steps: number of batches.
        peak_rate: learning rate behind the warm-up; it falls along a cosine.
        dialogue_times: how often an epoch has a line of a dialogue, which is more like speech than a manual is.
        question_times: likewise a paragraph with a question, times the above.
        help_share: of the pages of LibreOffice's help in an epoch, which are half of all text.
    """

    steps: int
    peak_rate: float
    dialogue_times: int
    question_times: int
    help_share: float


STAGES = (Stage(steps=2500, peak_rate=4e-3, dialogue_times=2, question_times=1, help_share=0.4),)


def main() -> None:
    """Read the command line and make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/punctuation"), help="folder of what is made")
    parser.add_argument("--report", type=Path, metavar="FILE", help="measure the model, and write a table")
    given = parser.parse_args()
    out: Path = given.out.resolve()
    make_texts(out)
    for number in range(len(STAGES)):
        train(out, number)
    describe(out)
    if given.report is not None:
        write_json(given.report, {"rows": list(measure(out))})


# Texts.


def make_texts(out: Path) -> None:
    """Download and extract the packages, and write `texts/PART.tsv`: language, document, text with its marks.

    Args:
        out: folder of everything that is made.
    """
    if (out / "texts" / "sources.json").exists():
        return
    debs, files = out / "debs", out / "files"
    debs.mkdir(parents=True, exist_ok=True)
    names = [name for group in PACKAGES.values() for name in group]
    missing = [name for name in names if not list(debs.glob(f"{name}_*.deb"))]
    if missing:
        subprocess.run(["apt-get", "--quiet", "download", *missing], cwd=debs, check=True)
    for name in names:
        if not (files / name).exists():
            extract(next(debs.glob(f"{name}_*.deb")), files / name)
    parts: dict[str, list[str]] = defaultdict(list)
    documents = sorted(set(read_documents(files)))
    english = {text for language, _, text in documents if language == "en"}
    seen: set[tuple[str, str]] = set()
    for language, document, text in documents:
        untranslated = language != "en" and text in english
        if (
            untranslated
            or (language, text.lower()) in seen
            or (marked := read_marked(text, language)) is None
        ):
            continue
        seen.add((language, text.lower()))
        parts[part_of(document)].append("\t".join((language, document, written(marked))))
    for part, lines in parts.items():
        write_text(out / "texts" / f"{part}.tsv", "\n".join(lines) + "\n")
    versions = {name: next(debs.glob(f"{name}_*.deb")).name.split("_")[1] for name in names}
    sources = {
        f"{name} {versions[name].replace('%3a', ':')}": licence
        for licence, group in PACKAGES.items()
        for name in group
    }
    write_json(out / "texts" / "sources.json", sources)


def extract(archive: Path, folder: Path) -> None:
    """Extract pages and catalogues of a Debian package.

    Args:
        archive: the package.
        folder: to extract into.
    """
    folder.mkdir(parents=True)
    wanted = ("*.html", "*.page", "*.mo", "*core-sounds-??.txt.gz", "*copyright")
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as content:
        tar = ["tar", "--extract", "--directory", str(folder), "--wildcards", *wanted]
        subprocess.run(tar, stdin=content.stdout, stderr=subprocess.DEVNULL, check=False)


def part_of(document: str) -> str:
    """The part of a document: train, dev, test, or aside, for a test of texts of another kind.

    Args:
        document: its name, which is the same in all languages.
    """
    if document in ASIDE:
        return "aside"
    if document in CAMPAIGNS:
        return CAMPAIGNS[document]
    number = int(hashlib.sha256(document.encode()).hexdigest()[:8], 16) % 100
    return "train" if document.startswith("wesnoth") or number >= 8 else "dev" if number < 3 else "test"


def read_documents(files: Path) -> Iterator[tuple[str, str, str]]:
    """Language, document and text of every paragraph of the extracted packages.

    Args:
        files: folder with a folder for each package.
    """
    for path in sorted(files.rglob("*")):
        name = path.relative_to(files).as_posix()
        if prompts := re.search(r"core-sounds-([a-z]{2})\.txt\.gz$", name):
            for _, text in read_lines(path):
                yield prompts[1], "asterisk-core-sounds", text
        match = next(filter(None, (pattern.search(name) for pattern in _LANGUAGE)), None)
        if path.suffix not in (".html", ".page", ".mo") or match is None or match[1] not in _TAGS:
            continue
        language = _TAGS[match[1]]
        if path.suffix == ".mo":
            program = "freedroidrpg" if "freedroid" in path.stem else path.stem
            for english, text in messages(path):
                if program == "freedroidrpg" or "wesnoth" in program:
                    yield language, program, text
                    yield "en", program, english
            continue
        package = re.sub(r"-(en-us|en|de|es|fr|it|ru)$", "", name.partition("/")[0])
        document = f"{package}/{re.sub(r'[.][a-z]{2}(?=[.]html$)', '', name[match.end() :] or path.name)}"
        if match.re.pattern.startswith(r"\."):
            document = f"{package}/{path.name.split('.')[0]}"
        parser = Paragraphs()
        parser.feed(path.read_text(encoding="utf-8", errors="ignore"))
        for text in parser.texts:
            yield language, document, text


def messages(path: Path) -> Iterator[tuple[str, str]]:
    """English and translated texts of a compiled catalogue, by paragraph where they have equally many.

    Args:
        path: of an .mo file.
    """
    with path.open("rb") as file:
        catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]  # nothing else lists them
    for key, text in catalogue.items():
        if not isinstance(key, str) or not isinstance(text, str) or not key:
            continue
        english = [line for line in re.split(r"\n+", re.sub(r"^.*[\^\x04]", "", key)) if line]
        lines = [line for line in re.split(r"\n+", text) if line]
        if len(english) == len(lines):
            yield from zip(english, lines, strict=True)


class Paragraphs(HTMLParser):
    """Texts of the paragraphs of a page, in `texts`."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[str] = []
        self._open: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A paragraph begins; code within makes it one that is not spoken."""
        if tag == "p" or (tag == "div" and ("class", "para") in attrs):  # the latter in the handbook
            self._open = []
        elif tag in ("code", "cmd", "pre", "script", "br") and self._open is not None:
            self._open.append("\u241f")  # no text that is kept has it

    def handle_endtag(self, tag: str) -> None:
        """A paragraph ends."""
        if tag in ("p", "div") and self._open is not None:
            self.texts.append(" ".join("".join(self._open).split()))
            self._open = None

    def handle_data(self, data: str) -> None:
        """Text of a paragraph."""
        if self._open is not None:
            self._open.append(data)


def written(marked: Sequence[Marked]) -> str:
    """Words with their marks in one line, as `read_line` reads them.

    Args:
        marked: words.
    """
    return " ".join(word.text + word.mark for word in marked)


def read_texts(path: Path) -> Iterator[tuple[str, str, list[Marked]]]:
    """Language, document and words of every line of a table of texts.

    Args:
        path: of the table.
    """
    with path.open(encoding="utf-8") as file:
        for line in file:
            language, document, text = line.rstrip("\n").split("\t")
            yield language, document, [split_mark(word) for word in text.split(" ")]


# Training.


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """A text as numbers.

    Attributes:
        language: index among the languages.
        document: name.
        kinds: of its words (N,), indices into the features of all words.
        marks: behind them (N,), indices into `MARKS`.
        cases: of them (N,), indices into `CASES`.
    """

    language: int
    document: str
    kinds: np.ndarray
    marks: np.ndarray
    cases: np.ndarray

    def part(self, first: int, last: int) -> "Paragraph":
        """Words from `first` up to and without `last`."""
        return Paragraph(
            language=self.language,
            document=self.document,
            kinds=self.kinds[first:last],
            marks=self.marks[first:last],
            cases=self.cases[first:last],
        )


@dataclass(frozen=True, kw_only=True)
class TrainingTexts:
    """Paragraphs, and the parts of every kind of word in them."""

    paragraphs: list[Paragraph]
    features: list[tuple[int, ...]]

    @classmethod
    def read(cls, path: Path) -> "TrainingTexts":
        """Read a table of texts."""
        numbers: dict[tuple[str, str], int] = {}
        paragraphs = []
        for language, document, words in read_texts(path):
            kinds = [numbers.setdefault((word.text.lower(), language), len(numbers)) for word in words]
            paragraphs.append(
                Paragraph(
                    language=LANGUAGES.index(language),
                    document=document,
                    kinds=np.array(kinds, np.int32),
                    marks=np.array([MARKS.index(word.mark) for word in words], np.int8),
                    cases=np.array([CASES.index(word.case) for word in words], np.int8),
                )
            )
        features = [word_features(word, language, SHAPE.buckets) for word, language in numbers]
        return cls(paragraphs=paragraphs, features=features)

    def batches(self, epoch: int, stage: Stage) -> Iterator[list[Paragraph]]:
        """Batches of examples of like length, the same for the same epoch and stage.

        Args:
            epoch: number, of all stages.
            stage: proportions of the texts.
        """
        rng = random.Random(f"{SEED} {epoch}")
        examples = list(self._examples(rng, stage))
        rng.shuffle(examples)
        for start in range(0, len(examples), POOL):
            pool = sorted(examples[start : start + POOL], key=lambda one: len(one.kinds))
            batches: list[list[Paragraph]] = [[]]
            for one in pool:
                if len(one.kinds) * (len(batches[-1]) + 1) > BATCH_WORDS:
                    batches.append([])
                batches[-1].append(one)
            rng.shuffle(batches)
            yield from batches

    def _examples(self, rng: random.Random, stage: Stage) -> Iterator[Paragraph]:
        """Neighbouring sentences, a few at a time, now and then cut within one."""
        for language in range(len(LANGUAGES)):
            own = [
                one
                for one in self.paragraphs
                if one.language == language
                for _ in range(_times(one, stage))
                if not one.document.startswith("libreoffice") or rng.random() < stage.help_share
            ]
            rng.shuffle(own)
            waiting: list[Paragraph] = []
            wanted = rng.choice(_SENTENCES)
            for paragraph in own:
                for sentence in _sentences(paragraph):
                    long = sum(len(one.kinds) for one in waiting) + len(sentence.kinds) > MOST_WORDS
                    if waiting and (long or len(waiting) == wanted):
                        yield _cut(_joined(waiting), rng)
                        waiting, wanted = [], rng.choice(_SENTENCES)
                    waiting.append(sentence)


def _times(paragraph: Paragraph, stage: Stage) -> int:
    asks = MARKS.index("?") in paragraph.marks
    dialogue = paragraph.document.startswith("wesnoth-")
    return (stage.dialogue_times if dialogue else 1) * (stage.question_times if asks else 1)


def _sentences(paragraph: Paragraph) -> Iterator[Paragraph]:
    ends = np.flatnonzero(np.isin(paragraph.marks, [MARKS.index(mark) for mark in ENDS])) + 1
    for first, last in pairwise([0, *ends.tolist()]):
        yield paragraph.part(first, last)


def _joined(parts: Sequence[Paragraph]) -> Paragraph:
    return Paragraph(
        language=parts[0].language,
        document=parts[0].document,
        kinds=np.concatenate([one.kinds for one in parts]),
        marks=np.concatenate([one.marks for one in parts]),
        cases=np.concatenate([one.cases for one in parts]),
    )


def _cut(example: Paragraph, rng: random.Random) -> Paragraph:
    if rng.random() >= _CUT or len(example.kinds) < 6:
        return example.part(0, MOST_WORDS)
    border = rng.randrange(3, len(example.kinds) - 2)
    return example.part(border, len(example.kinds)) if rng.random() < 0.5 else example.part(0, border)


def train(out: Path, number: int) -> None:
    """Train a stage, or go on training it, and write the model to `OUT/stageN` and, after the last one, `OUT/model`.

    Args:
        out: folder of everything that is made.
        number: of the stage; its weights are first those of the stage before.
    """
    directory, stage = out / f"stage{number}", STAGES[number]
    if (directory / "config.json").exists():
        return
    torch.manual_seed(SEED)
    texts = TrainingTexts.read(out / "texts" / "train.tsv")
    network = PunctuationNetwork(SHAPE, "training")
    optimizer = torch.optim.AdamW(network.parameters(), lr=stage.peak_rate, weight_decay=0.01)
    saved, step = out / f"state{number}.pt", 0
    if number and not saved.exists():
        network.load_state_dict(torch.load(out / f"state{number - 1}.pt", weights_only=True)["network"])
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    done, seconds, losses = 0, time.process_time(), list[float]()
    for epoch in count(_EPOCHS * number):
        for batch in texts.batches(epoch, stage):
            done += 1
            if done <= step:
                continue
            torch.manual_seed(SEED + done)  # for dropout, so that a resumed run draws the same
            for group in optimizer.param_groups:
                group["lr"] = _rate(done, stage)
            loss = _loss(network, batch, texts.features)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            if done % _SAVE_STEPS == 0 or done == stage.steps:
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
                with atomic_path(saved) as partial:
                    torch.save(state, partial)
                mean = sum(losses[-_SAVE_STEPS:]) / len(losses[-_SAVE_STEPS:])
                print(
                    f"step {done} epoch {epoch} loss {mean:.4f} {time.process_time() - seconds:.0f} s",
                    flush=True,
                )
            if done == stage.steps:
                save(network, directory)
                if stage is STAGES[-1]:
                    save(network, out / "model")
                return


def describe(out: Path) -> None:
    """Write `OUT/model/training.json`: what the model was made from, and how.

    Args:
        out: folder of everything that is made.
    """
    words: Counter[str] = Counter()
    for language, _, own in read_texts(out / "texts" / "train.tsv"):
        words[language] += len(own)
    facts = {
        "command": "python -m scripts.punctuation",
        "seed": SEED,
        "stages": list(map(asdict, STAGES)),
        "words": dict(sorted(words.items())),
        "texts_sha256": file_sha256(out / "texts" / "train.tsv"),
        "debian_packages": {
            name: licence
            for name, licence in read_json(out / "texts" / "sources.json").items()
            if not name.startswith(tuple(ASIDE))
        },
    }
    write_json(out / "model" / "training.json", facts)
    size_mb = sum(path.stat().st_size for path in (out / "model").iterdir()) / 1e6
    print(
        f"{out / 'model'}: {size_mb:.2f} MB; copy it to src/sprachbund/models/assets/punctuation to ship it"
    )


def _rate(step: int, stage: Stage) -> float:
    if step < WARM_UP:
        return stage.peak_rate * step / WARM_UP
    done = (step - WARM_UP) / max(1, stage.steps - WARM_UP)
    return stage.peak_rate * max(0.02, 0.5 + 0.5 * math.cos(math.pi * done))


def _loss(
    network: PunctuationNetwork, batch: Sequence[Paragraph], features: Sequence[tuple[int, ...]]
) -> Tensor:
    """Mean cross-entropy of a word's mark and of its case."""
    kinds = np.concatenate([one.kinds for one in batch]).tolist()
    parts = [features[kind] for kind in kinds]
    sizes = np.array([len(one) for one in parts])
    offsets = torch.from_numpy(np.concatenate(([0], np.cumsum(sizes)[:-1])))
    num_words = torch.tensor([len(one.kinds) for one in batch])
    rows = torch.tensor([row for one in parts for row in one])
    marks, cases = network(rows, offsets, torch.tensor([one.language for one in batch]), num_words)
    valid = torch.arange(marks.shape[1])[None] < num_words[:, None]
    wanted_marks = torch.from_numpy(np.concatenate([one.marks for one in batch])).long()
    wanted_cases = torch.from_numpy(np.concatenate([one.cases for one in batch])).long()
    cross_entropy = nn.functional.cross_entropy
    return cross_entropy(marks[valid], wanted_marks) + cross_entropy(cases[valid], wanted_cases)


# Measuring: the whole way, from small letters without marks to the text that is written.


def measure(out: Path) -> Iterator[dict[str, str | float | None]]:
    """Rows of the report: F1 of marks and the share of words in the right case, of the model and of the rule.

    Args:
        out: folder with the texts and the model.
    """
    punctuators: tuple[Punctuator, ...] = (load(out / "model", "model"), FullStop())
    paragraphs: dict[tuple[str, str], list[list[Marked]]] = defaultdict(list)
    for part in ("test", "aside"):
        for language, document, words in read_texts(out / "texts" / f"{part}.tsv"):
            kind = ASIDE.get(document, "dialogue" if document in CAMPAIGNS else "manuals")
            paragraphs[kind, language].append(words)
    for (kind, language), own in sorted(paragraphs.items()):
        rng = random.Random(SEED)
        examples = test_examples(own, rng)
        examples = rng.sample(examples, min(len(examples), MOST_EXAMPLES))
        reference = [word for words in examples for word in words]
        row: dict[str, str | float | None] = {"text": kind, "language": language, "words": len(reference)}
        for punctuator in punctuators:
            written = [word for words in examples for word in rewritten(words, punctuator, language)]
            marks = [(one.mark, other.mark) for one, other in zip(reference, written, strict=True)]
            right = sum(one.case == other.case for one, other in zip(reference, written, strict=True))
            name = "" if punctuator.name == "model" else ", rule"
            row[f"all marks{name}"] = f_score(marks, MARKS[1:])
            for mark in MARKS[1:] if not name else ():
                row[mark] = f_score(marks, (mark,))
            row[f"case{name}"] = round(100 * right / len(reference), 1)
        yield row


def test_examples(paragraphs: Sequence[list[Marked]], rng: random.Random) -> list[list[Marked]]:
    """One to three neighbouring sentences at a time, as a span of speech has.

    Args:
        paragraphs: words.
        rng: draws how many.
    """
    examples: list[list[Marked]] = []
    for words in paragraphs:
        ends = [n + 1 for n, word in enumerate(words) if word.mark in ENDS]
        start = 0
        while start < len(ends):
            last = min(len(ends), start + rng.randint(1, 3))
            examples.append(words[ends[start - 1] if start else 0 : ends[last - 1]])
            start = last
    return examples


def rewritten(words: Sequence[Marked], punctuator: Punctuator, language: str) -> list[Marked]:
    """Words that lost marks and capitals, as they are restored.

    Args:
        words: of a text.
        punctuator: restores them.
        language: BCP-47 tag.
    """
    plain = [word.text.lower() for word in words]
    written = restore(plain, punctuator.label([plain], language)[0], language)
    return [split_mark(word.lstrip("¿¡").replace("\u00a0", "")) for word in written]


def f_score(pairs: Sequence[tuple[str, str]], marks: Sequence[str]) -> float | None:
    """F1 in percent of what stands behind words; None of marks that no reference has.

    Args:
        pairs: mark of the reference and mark written, word by word.
        marks: that count.
    """
    right = sum(one == other for one, other in pairs if one in marks)
    wanted, written = sum(one in marks for one, _ in pairs), sum(other in marks for _, other in pairs)
    return round(200 * right / (wanted + written), 1) if wanted else None


if __name__ == "__main__":
    main()
