"""Sampling and the fallback to it, beside torch's and transformers' own on random weights."""

import zlib
from dataclasses import replace
from math import log
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers.generation.logits_process import TemperatureLogitsWarper, WhisperNoSpeechDetection
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.decoding.guard import compression_ratio
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.decoding.sampling import TokenSampler, mean_with_end, needs_fallback, tempered
from sprachbund.decoding.search import search
from sprachbund.decoding.state import Hypothesis
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from sprachbund.streaming.engine import LiveEngine
from tests.decoding.tiny_family import TinyFamily

GERMAN = Target(language="de", source="en")


def memories(family: TinyFamily, count: int):
    rng = np.random.default_rng(0)
    sounds = [rng.normal(size=SAMPLE_RATE).astype(np.float32) for _ in range(count)]
    return family.encode(family.features(sounds))


@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0])
def test_probabilities_are_those_of_transformers_and_torch(temperature: float) -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(1)) * 4
    logits[:, ::7] = -torch.inf
    tempered_probs = tempered(logits.log_softmax(-1), temperature)
    warped = TemperatureLogitsWarper(temperature)(torch.zeros(5, 1), logits).softmax(-1)
    assert tempered_probs.numpy() == pytest.approx(warped.numpy(), abs=1e-6)
    categorical = torch.distributions.Categorical(logits=logits.double() / temperature).probs
    assert tempered_probs.numpy() == pytest.approx(categorical.numpy(), abs=1e-6)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    log_probs = torch.tensor([[0.5, 0.0, 0.3, 0.0, 0.2]]).log()
    sampler = TokenSampler(0.6, 0, [0], [GERMAN])
    counts = np.bincount([int(sampler.draw(log_probs)) for _ in range(4000)], minlength=5)
    assert counts[1] == counts[3] == 0
    expected = 4000 * tempered(log_probs, 0.6)[0].numpy()
    assert chisquare(counts[[0, 2, 4]], expected[[0, 2, 4]]).pvalue > 0.01


def test_draws_depend_on_seed_utterance_and_temperature_and_not_on_the_batch() -> None:
    family = TinyFamily(sharpness=1.0)
    memory, options = memories(family, 4), DecodingOptions(temperature=(1.0,))
    asked = [[GERMAN, Target(language="fr", source="en")]] * 4
    together = search(family, memory, asked, options, utterances=[7, 8, 9, 10])
    alone = search(family, memory.select(torch.tensor([2])), asked[:1], options, utterances=[9])
    assert [h.tokens for h in alone[0]] == [h.tokens for h in together[2]]
    assert {h.temperature for row in together for h in row} == {1.0}
    for other in (replace(options, sampling_seed=1), replace(options, temperature=(0.9,))):
        assert search(family, memory, asked, other, utterances=[7, 8, 9, 10]) != together
    assert search(family, memory, asked, options, utterances=[1, 2, 3, 4]) != together


def test_the_log_probability_is_that_of_the_model_and_not_of_the_draw() -> None:
    """As in Whisper, which compares it with the same threshold at all temperatures."""
    family = TinyFamily(sharpness=1.0)
    [[drawn]] = search(family, memories(family, 1), [[GERMAN]], DecodingOptions(temperature=(0.8,)))
    prompt, tokens = family.prompt(GERMAN), [*drawn.tokens, *([family.end_token] if drawn.finished else [])]
    cache = family.start(memories(family, 1), rows_per_memory=1, capacity=24, targets=[GERMAN])
    logits = family.step(torch.tensor([[*prompt, *tokens]]), cache)[0, len(prompt) - 1 : -1].clone()
    logits[:, family.suppressed(GERMAN)] = -torch.inf
    scores = tuple(row.detach() / 0.8 for row in logits)
    wanted = WhisperGenerationMixin._retrieve_avg_logprobs(scores, torch.tensor(tokens), 0.8)
    assert drawn.log_probability / len(tokens) == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.parametrize("mean", [-1.5, -0.5])
@pytest.mark.parametrize("silence", [0.1, 0.9])
@pytest.mark.parametrize("letters", ["abcdefghijkl", "ab" * 60])
def test_the_conditions_of_fallback_are_those_of_transformers(
    mean: float, silence: float, letters: str
) -> None:
    family = SimpleNamespace(decode_text=lambda tokens: letters)
    row = Hypothesis(
        tokens=(5,) * 9,
        log_probability=10 * mean,
        finished=True,
        no_speech_log_probability=log(silence),
        score=0.0,
    )
    detection = object.__new__(WhisperNoSpeechDetection)
    detection.__dict__["_no_speech_prob"] = [silence]
    ratio = len(letters) / len(zlib.compress(letters.encode()))
    mixin = SimpleNamespace(_retrieve_compression_ratio=lambda sequence, size: ratio)
    outputs = [{"sequences_scores": mean}]
    guard = GuardOptions()
    config = SimpleNamespace(
        compression_ratio_threshold=guard.max_compression_ratio,
        logprob_threshold=guard.min_mean_log_probability,
        no_speech_threshold=guard.max_no_speech_probability,
    )
    decided = WhisperGenerationMixin._need_fallback
    wanted, _ = decided(mixin, torch.tensor(row.tokens), Outputs(outputs), 0, [detection], config, 99, 0.0)
    assert needs_fallback(family, row, guard) == wanted  # type: ignore[arg-type]


class Outputs(list):  # type: ignore[type-arg]
    """What transformers looks at, whose first entry has to have an attribute of the score."""

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return _Scored(super().__getitem__(index))


class _Scored(dict):  # type: ignore[type-arg]
    sequences_scores = True


def test_only_what_goes_wrong_is_decoded_at_the_next_temperature() -> None:
    family = TinyFamily(sharpness=1.0)
    memory, asked, temperatures = memories(family, 12), [[GERMAN]] * 12, (0.0, 0.2, 1.0)
    texts = {
        temperature: [
            row[0] for row in search(family, memory, asked, DecodingOptions(temperature=(temperature,)))
        ]
        for temperature in temperatures
    }
    # One of the texts drawn at 0.2 is likelier than the greedy one; the limit lies between the two.
    better = next(n for n in range(12) if mean_with_end(texts[0.2][n]) > mean_with_end(texts[0.0][n]))
    limit = (mean_with_end(texts[0.2][better]) + mean_with_end(texts[0.0][better])) / 2
    guard = GuardOptions(min_mean_log_probability=limit, max_compression_ratio=1e9)
    found = search(family, memory, asked, DecodingOptions(temperature=temperatures, guard=guard))
    chosen = [row[0] for row in found]
    for number, hypothesis in enumerate(chosen):
        tried = [texts[temperature][number] for temperature in temperatures]
        first = next((one for one in tried if not needs_fallback(family, one, guard)), None)
        assert hypothesis == (
            first or max(tried, key=mean_with_end)
        )  # as faster-whisper: the likeliest, if none is good
    assert chosen[better].temperature == 0.2
    assert sum(needs_fallback(family, h, guard) for h in texts[0.0]) > 3


def test_of_texts_that_all_fail_the_likeliest_without_a_loop_is_taken() -> None:
    family = TinyFamily(sharpness=1.0)
    memory, asked = memories(family, 6), [[GERMAN]] * 6
    temperatures = (0.0, 0.4, 0.8, 1.0)
    texts = {
        temperature: [
            row[0] for row in search(family, memory, asked, DecodingOptions(temperature=(temperature,)))
        ]
        for temperature in temperatures
    }
    sizes = sorted(compression_ratio(family.decode_text(h.tokens)) for row in texts.values() for h in row)
    for most in (1e9, sizes[len(sizes) // 2], 0.0):  # none loops, some do, all do
        guard = GuardOptions(min_mean_log_probability=-1e-9, max_compression_ratio=most)
        found = search(family, memory, asked, DecodingOptions(temperature=temperatures, guard=guard))
        for number, row in enumerate(found):
            tried = [texts[temperature][number] for temperature in temperatures]
            kept = [h for h in tried if compression_ratio(family.decode_text(h.tokens)) <= most]
            assert row[0] == max(kept or tried, key=mean_with_end)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": (1.5,)}, r"temperature is \(1\.5,\); give numbers from 0 to 1"),
        ({"temperature": ()}, "give numbers from 0 to 1"),
        ({"temperature": (0.4, 0.2)}, "each has to be higher than the one before"),
        ({"temperature": (0.4,), "beam_size": 3}, "a beam works at 0 alone"),
        ({"temperature": (0.4,), "draft": "parasite"}, "a draft works at 0 alone"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, said: str) -> None:
    with pytest.raises(SprachbundError, match=said):
        DecodingOptions(**options)


def test_live_text_is_not_drawn() -> None:
    with pytest.raises(SprachbundError, match="live text is searched at temperature 0"):
        LiveEngine(TinyFamily(), DecodingOptions(temperature=(0.0, 0.5)))


def test_options_are_read_again_as_they_were_stored() -> None:
    from dataclasses import asdict

    options = DecodingOptions(temperature=(0.0, 0.5), sampling_seed=3)
    assert DecodingOptions.from_stored({**asdict(options), "temperature": [0.0, 0.5]}, "x") == options
