"""Gradients of a model by module and language, their random projections, and the utterances that they are taken on.

Loss. The decoder's cross-entropy alone, without label smoothing: smoothing, CTC and language heads pull all languages
the same way. The decoder's input (the language tag, a prompt) is never a target.

Projections. No matrix is held: a projection is a function of seed, parameter name and coordinate, the same for every
language, device and process, and is computed again piece by piece, on the device that has the gradient. Random bits are
the raw output of the counter-based generator Philox, which no release of numpy changes. Both kinds keep inner products
of unit vectors x, y on average, with a variance of at most (1 + <x, y>^2) / d.

Utterances. They are ranked by a hash of seed and name, so the choice does not depend on the order of the data.

Shapes: B utterances, U tokens of a row, V vocabulary, N vectors, P coordinates of a parameter, d dimensions of a
sketch.
"""

import difflib
import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain, islice, zip_longest
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sprachbund.data.manifest import Manifest, Utterance, distinct_directories
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Features, Memory, Target
from sprachbund.models.splitting import start_route
from sprachbund.research.gradient_sharing.collect_options import Granularity, Kind

FEED_FORWARDS = ("feed_forward_out", "feed_forward")
"""Second feed-forward of a conformer's layers; the one feed-forward of plain layers."""
_FAMILIES = ("conformer", "whisper", "seamless")
NOISE = 1e-6
"""A tensor whose gradient is so small beside the largest of its module holds rounding errors only: biases before a
softmax, for one. Normalised it would count as much as any other, so it counts as zero."""


@dataclass(frozen=True, kw_only=True)
class GradientExample:
    """An utterance and what is to be written of it.

    Attributes:
        samples: (num_samples,) float32 at 16 kHz, mono.
        text: text in the language `target`.
        source: BCP-47 tag of the speech.
        target: BCP-47 tag of the text.
    """

    samples: np.ndarray
    text: str
    source: str
    target: str


class Objective(Protocol):
    """The one thing a model has to have: a differentiable loss of utterances."""

    def __call__(self, model: Any, utterances: Sequence[GradientExample]) -> tuple[Tensor, int]:
        """Loss summed over target tokens, and how many tokens were counted."""
        ...


def decoder_loss(model: Any, utterances: Sequence[GradientExample]) -> tuple[Tensor, int]:
    """`Objective` of the families with a text decoder: cross-entropy of what follows the prompt."""
    sums, counts = utterance_losses(model, model.encode(features_of(model, utterances)), utterances)
    return sums.sum(), int(counts.sum())


def utterance_losses(
    model: Any, memory: Memory, utterances: Sequence[GradientExample]
) -> tuple[Tensor, Tensor]:
    """Cross-entropy (B,) of each utterance's text, summed over its tokens, and the number (B,) of these.

    Args:
        model: model with a text decoder.
        memory: memory of the utterances.
        utterances: utterances with the texts wanted.
    """
    targets = [Target(language=u.target, source=u.source) for u in utterances]
    prompts = [model.prompt(target) for target in targets]
    rows = [p + target_tokens(model, u.text, u.target) for p, u in zip(prompts, utterances, strict=True)]
    device = memory.states.device
    tokens = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)
    positions = torch.arange(1, tokens.shape[1], device=device)
    first = torch.tensor([len(p) for p in prompts], device=device)[:, None]
    end = torch.tensor([len(row) for row in rows], device=device)[:, None]
    counted = (positions >= first) & (positions < end)
    route = start_route(model, targets, device)
    hidden = model.decoder(tokens[:, :-1], memory.states, memory.num_frames, route)
    logits = model.decoder.logits(hidden[counted]).float()
    losses = torch.zeros(counted.shape, device=device)
    losses[counted] = F.cross_entropy(logits, tokens[:, 1:][counted], reduction="none")
    return losses.sum(1), counted.sum(1)


def check_decoder(model: Any) -> None:
    """Check that a model writes by a text decoder, through whose loss gradients are taken.

    Raises:
        SprachbundError: a family that has no rows of text tokens, or a model that writes frame by frame, whose decoder
            need not be trained.
    """
    if model.name not in _FAMILIES:
        raise SprachbundError(
            f"family {model.name!r} does not say its target tokens; give the collection an objective of your own"
        )
    if model.capabilities.writes_by_frames:
        raise SprachbundError(
            f"the model {model.name} writes frame by frame, and gradients are those of a text decoder; take a model "
            "that writes by one, or give the collection an objective of your own"
        )


def target_tokens(model: Any, text: str, language: str) -> list[int]:
    """Tokens of a text as the model is trained to write it, the end included.

    Args:
        model: model with a tokenizer, of a family that `check_decoder` accepts.
        text: target text.
        language: BCP-47 tag.
    """
    if model.name == "conformer":
        return [*model.tokenizer.encode(text), model.end_token]
    if model.name == "whisper":
        from sprachbund.models.whisper.model import target_tokens as whisper_tokens

        return whisper_tokens(model, text, language)
    return list(model.target_tokens(text))


def features_of(model: Any, utterances: Sequence[GradientExample]) -> Features:
    """Features of utterances whose languages are given, on the model's device."""
    features: Features = model.features([u.samples for u in utterances])
    heard = list(model.source_languages)
    device = next(model.parameters()).device
    return Features(
        values=features.values.to(device),
        num_frames=features.num_frames.to(device),
        source_language=torch.tensor([heard.index(u.source) for u in utterances], device=device),
    )


def choose_modules(
    model: nn.Module, patterns: Sequence[str] = (), *, whole_layers: bool = False, side: str = "encoder"
) -> dict[str, dict[str, nn.Parameter]]:
    """Module name to its trainable parameters under their full names, in the model's order.

    Args:
        model: any module.
        patterns: patterns of names as `named_modules` gives them; `*` stands for anything between two dots. None given:
            the second feed-forward, or the only one, of every layer.
        whole_layers: every layer as a whole, where no patterns are given.
        side: "encoder" or "decoder", whose layers are meant where no patterns are given.

    Raises:
        SprachbundError: a pattern that no module with trainable parameters matches; the nearest are named.
    """
    modules = dict(model.named_modules())
    if not patterns:
        layers = f"{side}.layers.*"
        choices = [layers] if whole_layers else [f"{layers}.{name}" for name in FEED_FORWARDS]
        patterns = [p for p in choices if _matching(modules, p)][:1] or choices[:1]
    chosen = {name: None for pattern in patterns for name in _matched(modules, pattern)}
    return {name: _parameters(name, modules[name]) for name in modules if name in chosen}


def _matched(modules: Mapping[str, nn.Module], pattern: str) -> list[str]:
    matching = _matching(modules, pattern)
    if not matching:
        trained = (name for name, module in modules.items() if name and _parameters(name, module))
        general = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in trained)
        as_deep = [name for name in general if name.count(".") == pattern.count(".")]
        nearest = difflib.get_close_matches(pattern, as_deep or list(general), n=5, cutoff=0.0)
        raise SprachbundError(
            f"no module with trainable parameters matches {pattern!r}; nearest: {', '.join(nearest)}"
        )
    return matching


def _matching(modules: Mapping[str, nn.Module], pattern: str) -> list[str]:
    wanted = pattern.split(".")
    return [
        name
        for name, module in modules.items()
        if name
        and len(parts := name.split(".")) == len(wanted)
        and all(map(fnmatchcase, parts, wanted))
        and _parameters(name, module)
    ]


def _parameters(name: str, module: nn.Module) -> dict[str, nn.Parameter]:
    return {f"{name}.{inner}": p for inner, p in module.named_parameters() if p.requires_grad}


@contextmanager
def probing(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """The model without dropout, and nothing but `parameters` tracked; as it was before when left."""
    trained, tracked = model.training, [p for p in model.parameters() if p.requires_grad]
    model.eval().requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        model.requires_grad_(False).train(trained)
        for parameter in tracked:
            parameter.requires_grad_(True)


def stream_gradients(
    model: nn.Module,
    batches: Iterable[Sequence[GradientExample]],
    parameters: Mapping[str, nn.Parameter],
    take: Callable[[str, Tensor], None],
    objective: Objective = decoder_loss,
) -> None:
    """Hand over the sum over batches of the gradient of the loss per target token, a tensor at a time.

    To be called within `probing`, with parameters that have no gradient. Gradients are fetched while the backward pass
    goes on, and with the last batch they are handed over at once: with one batch, little more than the gradient of one
    tensor is held at a time; with several, the sums that were not handed over yet.

    Args:
        model: model in evaluation mode.
        batches: utterances with their targets, batch by batch.
        parameters: parameters by name.
        take: called with each name, once, and the gradient: fp32, flat, on the model's device. The order is that of the
            backward pass. A parameter that no batch used has a gradient of zeros.
        objective: loss of a batch.
    """
    sums: dict[str, Tensor] = {}
    left = dict.fromkeys(parameters)
    names: dict[nn.Parameter, list[str]] = defaultdict(list)  # a parameter may be shared between modules
    for name, parameter in parameters.items():
        names[parameter].append(name)
    is_last = False

    def fetch(parameter: Tensor) -> None:
        assert parameter.grad is not None
        new, parameter.grad = parameter.grad.float().flatten(), None
        for name in names[parameter]:  # type: ignore[index]
            total = sums.pop(name) + new if name in sums else new
            if is_last:
                del left[name]
                take(name, total)
            else:
                sums[name] = total

    with ExitStack() as stack:
        for parameter in names:
            stack.callback(parameter.register_post_accumulate_grad_hook(fetch).remove)
        for utterances, is_last in _with_last(batches):  # noqa: B007
            total, count = objective(model, utterances)
            (total / max(count, 1)).backward(inputs=list(names))
    for name in left:  # the last batch did not use them
        take(name, sums.pop(name) if name in sums else torch.zeros_like(parameters[name]).float().flatten())


def _with_last(
    batches: Iterable[Sequence[GradientExample]],
) -> Iterator[tuple[Sequence[GradientExample], bool]]:
    """Batches, and whether each is the last one."""
    rest = iter(batches)
    current = next(rest)
    for following in rest:
        yield current, False
        current = following
    yield current, True


def counted_tensors(norms: Mapping[str, float], where: str) -> list[str]:
    """The tensors of a module whose gradients are more than rounding errors.

    Args:
        norms: length of the gradient of each tensor.
        where: language and module, for messages.

    Raises:
        SprachbundError: a gradient is not finite, or all are zero.
    """
    if not all(map(math.isfinite, norms.values())):
        raise SprachbundError(
            f"{where}: a gradient is not finite; the checkpoint or an utterance is broken, "
            "see whether its loss is finite"
        )
    if not (largest := max(norms.values(), default=0.0)):
        raise SprachbundError(
            f"{where}: all gradients are zero; the module plays no part for this language, "
            "leave one of the two out (--modules, --languages)"
        )
    return [name for name, norm in norms.items() if norm > NOISE * largest]


# Random projections of gradients.

_WORDS = 1 << 18
"""Random 64-bit words made at a time: 2 MiB."""
_SHARE = 4
"""A word gives so many draws of 16 bits."""


class Projection(Protocol):
    """A random linear map for every parameter."""

    dimensions: int

    def project(self, name: str, vectors: Sequence[Tensor]) -> np.ndarray:
        """(N, d) float64 from N float32 vectors (P,) of the parameter called `name`, computed on their device."""
        ...

    def block(self, num_coordinates: int) -> int:
        """Return the number of vectors that are best projected together, of so many coordinates in all."""
        ...


def cosine_error(dimensions: int, cosine: float = 0.0) -> float:
    """Standard deviation of a sketch's cosine about the exact one: (1 - cosine^2) / sqrt(d), to first order."""
    return (1 - cosine**2) / math.sqrt(dimensions)


def make_projection(kind: Kind, dimensions: int, seed: int) -> Projection:
    """The projection of that kind.

    Args:
        kind: "count" or "gaussian".
        dimensions: d.
        seed: seed of the projection.
    """
    kinds = {"count": CountSketch, "gaussian": Gaussian}
    return kinds[kind](dimensions=dimensions, seed=seed)


@dataclass(frozen=True, kw_only=True)
class CountSketch:
    """Every coordinate is added, with a random sign, to one random dimension (Charikar, Chen, Farach-Colton 2004).

    P steps instead of d P, and by its second moments no worse than a Gaussian: the variance of an inner product is
    (1 + <x, y>^2 - 2 sum x_i^2 y_i^2) / d.

    Attributes:
        dimensions: d, at most 4096 so that 16 bits fall evenly enough on 2 d coordinates.
        seed: seed of all parameters' maps.
    """

    dimensions: int
    seed: int

    def project(self, name: str, vectors: Sequence[Tensor]) -> np.ndarray:
        """See `Projection`. On a GPU, sums of float64 are added up in an order that varies."""
        num_buckets = 2 * self.dimensions
        size, device = len(vectors[0]), vectors[0].device
        sums = torch.zeros(len(vectors), num_buckets, dtype=torch.float64, device=device)
        random = _generator(self.seed, name)
        for start in range(0, size, _WORDS * _SHARE):
            count = min(_WORDS * _SHARE, size - start)
            words = random.random_raw(-(-count // _SHARE)).astype("<u8", copy=False)
            buckets = torch.from_numpy((words.view("<u2")[:count] % num_buckets).astype(np.int16))
            buckets = buckets.to(device).long()
            for row, vector in zip(sums, vectors, strict=True):
                piece = vector[start : start + count].double()
                row += torch.bincount(buckets, weights=piece, minlength=num_buckets)
        sketches: np.ndarray = (sums[:, : self.dimensions] - sums[:, self.dimensions :]).cpu().numpy()
        return sketches

    def block(self, num_coordinates: int) -> int:
        """One: making the map anew costs less than adding up a vector."""
        return 1


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """The published projection: a dense matrix of independent normal numbers of variance 1 / d.

    Remaking the matrix is what costs, so as many vectors as memory allows share it.

    Attributes:
        dimensions: d.
        seed: seed of all parameters' matrices.
        memory_bytes: for the vectors that wait to be projected together, on the model's device.
    """

    dimensions: int
    seed: int
    memory_bytes: int = 1 << 30

    def project(self, name: str, vectors: Sequence[Tensor]) -> np.ndarray:
        """See `Projection`."""
        size, device = len(vectors[0]), vectors[0].device
        sums = torch.zeros(len(vectors), self.dimensions, dtype=torch.float64, device=device)
        normal = np.random.Generator(_generator(self.seed, name))
        step = max(1, _WORDS // self.dimensions)
        for start in range(0, size, step):
            piece = torch.stack([vector[start : start + step] for vector in vectors])
            matrix = normal.standard_normal((piece.shape[1], self.dimensions), dtype=np.float32)
            sums += piece @ torch.from_numpy(matrix).to(device)
        sketches: np.ndarray = sums.cpu().numpy() / math.sqrt(self.dimensions)
        return sketches

    def block(self, num_coordinates: int) -> int:
        """Number of vectors that fit into `memory_bytes`, one at least."""
        return max(1, self.memory_bytes // (4 * max(1, num_coordinates)))


def _generator(seed: int, name: str) -> np.random.Philox:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


# The choice of utterances.

PAIR = ">"
"""Between the languages of a pair: "de>fr"."""

Fits = Callable[[Any, Utterance, str], bool]
"""Whether a model takes an utterance with its text in a language."""


@dataclass(frozen=True, kw_only=True)
class GradientRow:
    """An utterance, by its number in one of the manifests and its name, and the languages it is used with."""

    manifest: int
    index: int
    id: str
    source: str
    target: str

    def read(self, manifests: Sequence[Manifest]) -> GradientExample:
        """Sound and text."""
        manifest = manifests[self.manifest]
        text = manifest[self.index].text_in(self.target)
        assert text is not None
        samples = manifest.samples(self.index)
        return GradientExample(samples=samples, text=text, source=self.source, target=self.target)


@dataclass(frozen=True, kw_only=True)
class ChosenRows:
    """The utterances and targets that gradients are taken on.

    Attributes:
        rows: rows of every language or pair, in the order in which they are used.
        passed_over: number of utterances that were met and could not be used.
    """

    rows: Mapping[str, Sequence[GradientRow]]
    passed_over: Mapping[str, int]


def fits(model: Any, utterance: Utterance, target: str) -> bool:
    """Whether a family's window and longest row hold the utterance and its text.

    Args:
        model: model that reads and writes.
        utterance: utterance with its duration and texts.
        target: BCP-47 tag of the text.
    """
    text = utterance.text_in(target)
    if not text or not text.strip() or utterance.duration_s > model.max_window_s:
        return False
    prompt = model.prompt(Target(language=target, source=utterance.language))
    return len(prompt) + len(target_tokens(model, text, target)) - 1 <= model.max_tokens


def choose_rows(
    model: Any,
    manifests: Sequence[Manifest],
    *,
    by: Granularity,
    count: int,
    seed: int,
    languages: Sequence[str] = (),
    targets: Sequence[str] = (),
    fits: Fits = fits,
) -> ChosenRows:
    """The utterances of every language (or pair), none twice.

    By source the languages written take turns, and by target those spoken, so that all languages are compared on
    the same mixture.

    Args:
        model: knows its `pairs()`.
        manifests: the data.
        by: languages that are compared: of the source, of the target, or pairs.
        count: utterances of each.
        seed: seed of the choice.
        languages: compared; all in the data if none are given.
        targets: languages written; all that the model knows if none are given.
        fits: whether the model takes an utterance.

    Raises:
        SprachbundError: a language that the model or the data do not know, or with too few utterances; a corpus that is
            named twice.
    """
    distinct_directories([manifest.directory for manifest in manifests])
    choice = _Choice(model, manifests, seed, targets, fits)
    rows, passed_over = {}, {}
    for key, streams in choice.streams(by, languages).items():
        before = choice.passed_over
        taken = list(islice(_taking_turns(streams), count))
        if len(taken) < count:
            raise SprachbundError(
                f"{key} has {len(taken)} utterances that can be used, {count} are needed; "
                f"take fewer (--utterances), more data, or leave {key} out (--languages)"
            )
        rows[key], passed_over[key] = taken, choice.passed_over - before
    return ChosenRows(rows=rows, passed_over=passed_over)


class _Choice:
    """The utterances of all languages spoken, ranked."""

    def __init__(
        self, model: Any, manifests: Sequence[Manifest], seed: int, targets: Sequence[str], fits: Fits
    ) -> None:
        self.model, self.manifests, self.fits = model, manifests, fits
        self.passed_over = 0
        self.pairs = sorted(pair for pair in model.pairs() if not targets or pair[1] in targets)
        self.written: set[tuple[str, str]] = set()
        ranked: dict[str, list[tuple[bytes, int, int]]] = defaultdict(list)
        for number, manifest in enumerate(manifests):
            for index, utterance in enumerate(manifest):
                if utterance.language:
                    rank = hashlib.sha256(f"{seed}:{utterance.id}".encode()).digest()
                    ranked[utterance.language].append((rank, number, index))
                    texts = {utterance.language, *utterance.translations}
                    self.written |= {(utterance.language, text) for text in texts}
        self.ranked = {language: sorted(ranks) for language, ranks in ranked.items()}
        if unknown := sorted(set(targets) - {target for _, target in model.pairs()}):
            raise SprachbundError(f"this model does not write {', '.join(unknown)}; leave it out of --to")

    def streams(self, by: Granularity, languages: Sequence[str]) -> dict[str, list[Iterator[GradientRow]]]:
        """For every language or pair compared, streams of rows that take turns."""
        if by == "source":
            wanted = self._wanted(languages, self.ranked, {source for source, _ in self.pairs})
            return {source: [self._in_turn(source)] for source in wanted}
        pairs = [pair for pair in self.pairs if pair in self.written]
        if by == "pair":
            named = {f"{source}{PAIR}{target}": (source, target) for source, target in pairs}
            wanted = self._wanted(languages, named, named)
            return {key: [self._rows(*named[key])] for key in wanted}
        by_target: dict[str, list[Iterator[GradientRow]]] = defaultdict(list)
        for source, target in pairs:
            by_target[target].append(self._rows(source, target))
        return {target: by_target[target] for target in self._wanted(languages, by_target, by_target)}

    def _wanted(self, languages: Sequence[str], there: Any, known: Any) -> list[str]:
        if missing := [language for language in languages if language not in there]:
            raise SprachbundError(
                f"the data hold nothing for {', '.join(missing)}; they hold {', '.join(sorted(there))}"
            )
        wanted = sorted(set(languages) or set(there))
        if unknown := [language for language in wanted if language not in known]:
            raise SprachbundError(
                f"the model does not know {', '.join(unknown)}; name the languages to compare with --languages: "
                f"{', '.join(sorted(set(there) & set(known))) or 'none of the data is known to it'}"
            )
        if not wanted:
            raise SprachbundError("no language of the data is known to the model; check both")
        return wanted

    def _rows(self, source: str, target: str) -> Iterator[GradientRow]:
        for _, number, index in self.ranked[source]:
            utterance = self.manifests[number][index]
            if self.fits(self.model, utterance, target):
                yield GradientRow(manifest=number, index=index, id=utterance.id, source=source, target=target)
            else:
                self.passed_over += 1

    def _in_turn(self, source: str) -> Iterator[GradientRow]:
        """Each utterance once, with the first language it can be written in from the one whose turn it is."""
        targets = [target for spoken, target in self.pairs if spoken == source]
        turn = 0
        for _, number, index in self.ranked[source]:
            utterance = self.manifests[number][index]
            for step in range(len(targets)):
                target = targets[(turn + step) % len(targets)]
                if self.fits(self.model, utterance, target):
                    yield GradientRow(
                        manifest=number, index=index, id=utterance.id, source=source, target=target
                    )
                    turn += 1
                    break
            else:
                self.passed_over += 1


def _taking_turns(streams: Sequence[Iterator[GradientRow]]) -> Iterator[GradientRow]:
    return (row for row in chain.from_iterable(zip_longest(*streams)) if row is not None)
