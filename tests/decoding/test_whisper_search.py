"""The searches on a Whisper of random weights, beside transformers' model and logit rules."""

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

from sprachbund.audio.constants import SAMPLE_RATE
from sprachbund.decoding.long_form import translate
from sprachbund.decoding.options import DecodingOptions, GuardOptions
from sprachbund.decoding.search import search
from sprachbund.models.base import Target
from sprachbund.models.whisper import load
from tests.decoding.test_translate import Loudness, recording
from tests.models.whisper_support import make_directory

SUPPRESSED, BEGIN_SUPPRESSED = [5, 17, 40], [220, 256]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    path = tmp_path_factory.mktemp("whisper")
    lists = {"suppress_tokens": SUPPRESSED, "begin_suppress_tokens": BEGIN_SUPPRESSED}
    reference = make_directory(path, generation=lists)
    return load(path), reference


def reference_greedy(model, reference, values, target: Target, limit: int) -> list[int]:
    """Greedy decoding by transformers' model and timestamp rules, a whole pass per token."""
    prompt = model.prompt(target)
    config = type("Config", (), {})()
    config.no_timestamps_token_id = model.tokens.no_timestamps
    config.eos_token_id = config.bos_token_id = model.end_token
    config.max_initial_timestamp_index = 50
    rules = WhisperTimeStampLogitsProcessor(config, begin_index=len(prompt))
    tokens = list(prompt)
    while len(tokens) - len(prompt) < limit:
        row = torch.tensor([tokens])
        with torch.no_grad():
            logits = reference(input_features=values, decoder_input_ids=row).logits[:, -1].clone()
        logits[:, SUPPRESSED] = -torch.inf
        if len(tokens) == len(prompt):
            logits[:, BEGIN_SUPPRESSED] = -torch.inf
        special = model.suppressed(target)
        logits[:, special] = -torch.inf
        if target.timestamps:
            logits[:, model.tokens.timestamps[0] + 101 :] = -torch.inf
            logits = rules(row, logits)
        token = int(logits.argmax())
        if token == model.end_token:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_greedy_tokens_are_those_of_transformers(pair, seed, timestamps):
    model, reference = pair
    rng = np.random.default_rng(seed)
    samples = [rng.normal(size=SAMPLE_RATE * 2).astype(np.float32) * 0.1 for _ in range(3)]
    targets = [
        Target(language="en", source="de", timestamps=timestamps),
        Target(language="de", source="de", context="ein Wort", timestamps=timestamps),
    ]
    features = model.features(samples)
    with torch.inference_mode():
        memory = model.encode(features)
    rows = search(model, memory, [targets] * 3, DecodingOptions(max_tokens=24), [2.0] * 3)
    for i, row in enumerate(rows):
        values = features.values[i : i + 1].transpose(1, 2)
        for target, hypothesis in zip(targets, row, strict=True):
            assert list(hypothesis.tokens) == reference_greedy(model, reference, values, target, 24)
    assert len({h.tokens for row in rows for h in row}) > 1


def test_long_form_with_timestamps_and_words(pair):
    model, _ = pair
    guard = GuardOptions(enabled=False)
    options = DecodingOptions(guard=guard, max_tokens=24, word_timestamps=True, beam_size=2)
    samples = recording((1.0, 2.5), (4.0, 9.0), duration_s=12.0)
    translations = translate(
        model, samples, ["en", "transcribe"], None, options, sample_rate=SAMPLE_RATE, activity=Loudness()
    )
    for translation in translations.values():
        every = sorted([*translation.segments, *translation.dropped], key=lambda s: s.start_s)
        assert every
        bounds = [t for s in every for t in (s.start_s, s.end_s)]
        assert bounds == pytest.approx(sorted(bounds))
        assert 0.0 <= bounds[0] <= bounds[-1] <= 12.0
        for segment in translation.segments:
            assert 0.0 <= segment.language_probability <= 1.0
            assert segment.no_speech_probability is not None
            times = [
                segment.start_s,
                *(t for w in segment.words for t in (w.start_s, w.end_s)),
                segment.end_s,
            ]
            assert times == pytest.approx(sorted(times))
