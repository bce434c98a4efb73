"""A small punctuator: hashed parts of words, and a recurrent network in both directions over them.

Every word, in small letters, becomes the mean of vectors of its parts: the whole word, how it begins and how it ends,
each by a hash into one table (arXiv 1607.04606). Two bidirectional GRU layers (arXiv 1406.1078) see the words of the
text, and two linear layers say the mark behind each word and its case. The table is most of the weights; they are kept
in 8 bits, a scale for each row.

Shapes: B texts, N words, F parts of a word, E width of the table, D width of a direction.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from zlib import crc32

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from sprachbund.errors import SprachbundError
from sprachbund.models.weights import check_weights, read_stored_config, read_weights, write_weights
from sprachbund.nn.limits import WIDTH
from sprachbund.text.punctuation import CASES, MARKS, Label
from sprachbund.util.files import write_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FAMILY = "punctuation"
_PREFIXES, _SUFFIXES = 4, 6  # longest beginning and end of a word that is a part of its own
_MOST_LETTERS = 64


class PunctuationShape(BaseModel):
    """Sizes of the network.

    Attributes:
        languages: BCP-47 tags.
        buckets: rows of the table.
        embedding: E.
        width: D.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    languages: tuple[str, ...] = Field(min_length=1)
    buckets: int = Field(strict=True, ge=1, le=1 << 22)
    embedding: int = Field(strict=True, ge=1, le=WIDTH.most)
    width: int = Field(strict=True, ge=1, le=WIDTH.most)


@lru_cache(maxsize=1 << 16)
def word_features(word: str, language: str, buckets: int) -> tuple[int, ...]:
    """Rows of the table for the parts of a word: (F,), at most 11.

    Args:
        word: word in any case; digits count as the same digit.
        language: the whole word has a row for each language, its parts are shared.
        buckets: rows of the table.
    """
    plain = "".join("0" if letter.isdigit() else letter for letter in word.lower()[:_MOST_LETTERS])
    padded = f"<{plain}>"
    parts = [f"{language}:{plain}"]
    parts += [padded[:n] for n in range(2, min(_PREFIXES, len(plain)) + 2)]
    parts += [padded[-n:] for n in range(2, min(_SUFFIXES, len(plain)) + 2)]
    return tuple(crc32(part.encode()) % buckets for part in parts)


class PunctuationNetwork(nn.Module):
    """The network; a punctuator, see `sprachbund.text.punctuation.Punctuator`.

    Args:
        shape: its sizes.
        name: for messages.
    """

    def __init__(self, shape: PunctuationShape, name: str) -> None:
        super().__init__()
        self.shape = shape
        self.name = name
        self.table = nn.EmbeddingBag(shape.buckets, shape.embedding, mode="mean")
        self.language = nn.Embedding(len(shape.languages), shape.embedding)
        self.layers = nn.GRU(
            2 * shape.embedding, shape.width, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1
        )
        self.mark = nn.Linear(2 * shape.width, len(MARKS))
        self.case = nn.Linear(2 * shape.width, len(CASES))

    @property
    def languages(self) -> tuple[str, ...] | None:
        """Tags that it was trained for."""
        return self.shape.languages

    def forward(
        self, parts: Tensor, offsets: Tensor, language: Tensor, num_words: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits of marks (B, N, 6) and of cases (B, N, 3); N is that of the longest text.

        Args:
            parts: rows of the table, of all words of all texts one behind the other.
            offsets: index in `parts` at which each of the sum(num_words) words begins.
            language: index (B,) among the languages.
            num_words: (B,).
        """
        words = self.table(parts, offsets)
        each = self.language(language).repeat_interleave(num_words, 0)
        rows = torch.cat((words, each), -1).split(num_words.tolist())
        padded = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        packed = pack_padded_sequence(padded, num_words, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.layers(packed)[0], batch_first=True)
        return self.mark(states), self.case(states)

    @torch.inference_mode()
    def label(self, texts: Sequence[Sequence[str]], language: str) -> list[list[Label]]:
        """A label for every word of every text.

        Args:
            texts: words.
            language: one of `languages`.

        Raises:
            SprachbundError: another language.
        """
        if language not in self.shape.languages:
            raise SprachbundError(
                f"the punctuator {self.name} knows {', '.join(self.shape.languages)}, and not {language}"
            )
        return [self._label(words, language) if words else [] for words in texts]

    def _label(self, words: Sequence[str], language: str) -> list[Label]:
        parts, offsets = self.inputs(words, language)
        index = torch.tensor([self.shape.languages.index(language)])
        marks, cases = self(parts, offsets, index, torch.tensor([len(words)]))
        return [
            Label(mark=MARKS[mark], case=CASES[case])
            for mark, case in zip(marks[0].argmax(-1).tolist(), cases[0].argmax(-1).tolist(), strict=True)
        ]

    def inputs(self, words: Sequence[str], language: str) -> tuple[Tensor, Tensor]:
        """`parts` and `offsets` of one text.

        Args:
            words: words of the text.
            language: BCP-47 tag.
        """
        features = [word_features(word, language, self.shape.buckets) for word in words]
        offsets, total = [], 0
        for one in features:
            offsets.append(total)
            total += len(one)
        return torch.tensor([row for one in features for row in one]), torch.tensor(offsets)


def save(network: PunctuationNetwork, directory: Path) -> None:
    """Write config.json and the weights in 8 bits.

    Args:
        network: network to be written.
        directory: directory made if it is not there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_weights(directory / WEIGHTS, network.state_dict(), 8)
    write_json(directory / CONFIG, {"family": FAMILY, "config": network.shape.model_dump()})


def load(directory: Path, name: str) -> PunctuationNetwork:
    """Read what `save` wrote.

    Args:
        directory: directory of config.json and the weights.
        name: for messages.

    Raises:
        SprachbundError: a file that is missing, damaged, or fits no other.
    """
    network = PunctuationNetwork(read_stored_config(directory, PunctuationShape), name)
    weights = read_weights(directory / WEIGHTS)
    check_weights(weights, network.state_dict(), directory / WEIGHTS)
    network.load_state_dict(weights)
    return network.eval()
