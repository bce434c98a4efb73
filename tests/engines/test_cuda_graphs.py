"""Steps as CUDA graphs: on a GPU the same numbers; without one, all that a graph relies on.

What stands for a graph here repeats the step on its own buffers, and fails if a tensor of the cache has moved.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.decoding.state import Hypothesis
from sprachbund.engines import torch_layers as torch_parts
from sprachbund.engines.choice import engine_for
from sprachbund.engines.torch_layers import PLAIN_STEPS, Logits, Recorder, StaticCache, TorchDecoder
from sprachbund.models.whisper import Whisper
from tests.engines.support import random_decoder, relative_error
from tests.engines.test_engine import CLIPS, TARGETS
from tests.models.whisper_support import TINY, make_transformers_model, transplanted

OPTIONS = [DecodingOptions(max_tokens=14), DecodingOptions(beam_size=3, max_tokens=14)]


class Repeated:
    """Stands for `RecordedStep`."""

    made = 0

    def __init__(self, step: Logits, tokens: Tensor, lengths: Tensor) -> None:
        Repeated.made += 1
        self._step, self._tokens, self._lengths = step, tokens.clone(), lengths.clone()
        self._places = self._addresses()
        self._logits = step(self._tokens, self._lengths)

    def __call__(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        self._tokens.copy_(tokens)
        self._lengths.copy_(lengths)
        self._logits.copy_(self._step(self._tokens, self._lengths))
        assert self._addresses() == self._places
        return self._logits.clone()

    def _addresses(self) -> list[int]:
        cache = self._step.args[0]  # type: ignore[attr-defined]
        kept = (cache.self_keys, cache.self_values, cache.cross_keys, cache.cross_values)
        return [x.data_ptr() for kind in kept for x in kind]


@pytest.fixture
def repeated(monkeypatch: pytest.MonkeyPatch) -> Callable[[TorchDecoder], None]:
    """Makes a decoder record its steps without a GPU."""
    monkeypatch.setattr(torch_parts, "Recorder", lambda: Recorder(record=Repeated))
    monkeypatch.setattr(Repeated, "made", 0)
    return lambda decoder: setattr(decoder, "_records", True)


def started(decoder: TorchDecoder, num_rows: int = 3) -> StaticCache:
    generator = torch.Generator().manual_seed(1)
    memory = torch.randn(num_rows, 9, decoder.positions.shape[1], generator=generator)
    frames = torch.tensor([9, 4, 7])[:num_rows]
    return decoder.start(memory, frames, capacity=20)


def test_a_step_over_all_places_is_the_step() -> None:
    decoder = TorchDecoder(random_decoder(width=48, num_heads=3), "fp32")
    tokens = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain, other = started(decoder), started(decoder)
        for begin, end in ((0, 4), (4, 5), (5, 8), (8, 9), (9, 12)):
            expected = decoder.step(tokens[:, begin:end], plain)
            for _ in range(2):  # once more changes nothing, as warming up needs
                result = decoder.step_over_all(other, tokens[:, begin:end], other.lengths)
            other.grow(end - begin)
            assert relative_error(result, expected) < 1e-5
            for cache in (plain, other):  # rows of different lengths from here on
                cache.rewind(cache.lengths - torch.tensor([0, 1, 2]) * (end == 8))
        assert plain.lengths.tolist() == other.lengths.tolist() == [12, 11, 10]


def test_a_step_over_all_places_asks_the_device_nothing() -> None:
    decoder = TorchDecoder(random_decoder(width=48, num_heads=3), "fp32")
    cache = copy.deepcopy(started(decoder))
    for name in ("self_keys", "self_values", "cross_keys", "cross_values"):
        setattr(cache, name, [x.to("meta") for x in getattr(cache, name)])
    assert cache.memory_allowed is not None
    cache.memory_allowed = cache.memory_allowed.to("meta")
    decoder.to("meta")  # there are no numbers that could be asked for
    tokens, lengths = torch.zeros(3, 2, dtype=torch.long, device="meta"), cache.lengths.to("meta")
    with torch.inference_mode():
        assert decoder.step_over_all(cache, tokens, lengths).shape == (3, 2, 50)
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            lengths.tolist()


def test_steps_of_a_kind_are_recorded_once_there_were_some() -> None:
    recorder, tokens, lengths = Recorder(record=_counted), torch.zeros(2, 1), torch.zeros(2)
    answers = [recorder.run(_step, tokens, lengths) for _ in range(PLAIN_STEPS + 2)]
    assert [a is None for a in answers] == [True] * PLAIN_STEPS + [False] * 2
    assert recorder.run(_step, torch.zeros(2, 3), lengths) is None  # three tokens at once are of another kind
    recorder.forget()
    assert recorder.run(_step, tokens, lengths) is None


def _step(tokens: Tensor, lengths: Tensor) -> Tensor:
    return tokens + lengths[:, None]


def _counted(step: Logits, tokens: Tensor, lengths: Tensor) -> Logits:
    return step


@pytest.mark.parametrize("options", OPTIONS, ids=["greedy", "beam"])
def test_searches_with_recorded_steps_write_the_same(
    repeated: Callable[[TorchDecoder], None], options: DecodingOptions
) -> None:
    result = []
    for recorded in (False, True):
        whisper = transplanted(make_transformers_model(TINY), TINY)
        family = engine_for(whisper, "torch-fp32").family
        if recorded:
            repeated(family.decoder)  # type: ignore[attr-defined]
        result.append(written(family, options))
    assert Repeated.made > 0
    assert [h.tokens for h in result[0]] == [h.tokens for h in result[1]]
    for a, b in zip(*result, strict=True):
        assert a.log_probability == pytest.approx(b.log_probability, abs=1e-4)


def test_a_cache_whose_rows_change_is_recorded_anew(repeated: Callable[[TorchDecoder], None]) -> None:
    decoder = TorchDecoder(random_decoder(width=48, num_heads=3), "fp32")
    plain, token = started(decoder), torch.ones(3, 1, dtype=torch.long)
    repeated(decoder)
    other = started(decoder)
    with torch.inference_mode():
        for _ in range(PLAIN_STEPS + 1):
            decoder.step(token, plain), decoder.step(token, other)
        for cache in (plain, other):
            cache.keep(torch.tensor([0, 2]))
        for _ in range(PLAIN_STEPS + 1):
            expected, result = decoder.step(token[:2], plain), decoder.step(token[:2], other)
            assert relative_error(result, expected) < 1e-5
    assert Repeated.made == 2


def test_a_cache_that_is_full_is_an_error_with_recorded_steps(
    repeated: Callable[[TorchDecoder], None],
) -> None:
    decoder = TorchDecoder(random_decoder(width=32, num_heads=2), "fp32")
    repeated(decoder)
    cache, token = started(decoder), torch.ones(3, 1, dtype=torch.long)
    with torch.inference_mode():
        for _ in range(cache.capacity):
            decoder.step(token, cache)
        with pytest.raises(ValueError, match="21 tokens do not fit"):
            decoder.step(token, cache)


def test_nothing_is_recorded_without_a_gpu() -> None:
    assert started(TorchDecoder(random_decoder(width=32, num_heads=2), "fp32")).recorder is None


@pytest.mark.device
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", OPTIONS, ids=["greedy", "beam"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_graphs_write_what_plain_steps_write(precision: str, options: DecodingOptions) -> None:
    result = []
    for cuda_graphs in (False, True):
        whisper = transplanted(make_transformers_model(TINY), TINY).to("cuda")
        engine = engine_for(whisper, f"torch-{precision}", cuda_graphs=cuda_graphs)  # type: ignore[arg-type]
        result.append(written(engine.family, options))
    if precision == "fp32":
        assert [h.tokens for h in result[0]] == [h.tokens for h in result[1]]
    for a, b in zip(*result, strict=True):
        assert a.mean_log_probability == pytest.approx(
            b.mean_log_probability, abs=1e-4 if precision == "fp32" else 0.1
        )


@pytest.mark.device
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_gives_the_logits_of_plain_steps() -> None:
    plain_decoder = random_decoder(width=48, num_heads=3).to("cuda")
    memory = torch.randn(2, 9, 48, device="cuda")
    tokens = torch.randint(0, 50, (2, 12), device="cuda")
    logits = []
    with torch.inference_mode():
        for cuda_graphs in (False, True):
            decoder = TorchDecoder(plain_decoder, "fp32", cuda_graphs=cuda_graphs)
            cache = decoder.start(memory, None, capacity=20)
            assert (cache.recorder is not None) == cuda_graphs
            logits.append(torch.cat([decoder.step(tokens[:, i : i + 1], cache) for i in range(12)], dim=1))
    assert relative_error(logits[1], logits[0]) < 1e-4


def written(family: Whisper, options: DecodingOptions) -> list[Hypothesis]:
    with torch.inference_mode():
        memory = family.encode(family.features(CLIPS))
        return [h for group in search(family, memory, TARGETS, options) for h in group]
