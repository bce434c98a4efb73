"""The conformer family: padding and batching change nothing, stepping equals training, weights survive the disk."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from sprachbund.data.loading import collate
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Family, Features, Target
from sprachbund.models.conformer.io import load, save
from sprachbund.models.io import load as load_any
from sprachbund.models.weights import dequantize_rows, quantize_rows
from tests.training import made


@pytest.fixture(scope="module")
def model():
    return made.make_model().eval()


@pytest.fixture(scope="module")
def sounds():
    rng = np.random.default_rng(0)
    return [rng.uniform(-0.3, 0.3, n).astype(np.float32) for n in (9000, 20_000, 14_321)]


def test_it_is_a_family(model):
    assert isinstance(model, Family)
    assert model.pairs() == {("en", "en"), ("en", "de"), ("de", "en"), ("de", "de")}


@torch.no_grad()
def test_an_utterance_is_the_same_alone_and_in_a_batch(model, sounds):
    together = model.encode(model.features(sounds))
    languages = model.language_log_probs(together)
    for i, sound in enumerate(sounds):
        alone = model.encode(model.features([sound]))
        frames = int(alone.num_frames[0])
        assert frames == int(together.num_frames[i])
        torch.testing.assert_close(together.states[i, :frames], alone.states[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(languages[i], model.language_log_probs(alone)[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("num_samples", [1, 159, 160])
def test_sound_shorter_than_a_frame_is_one(num_samples, model, sounds):
    short = sounds[0][:num_samples]
    states = model.encode(model.features([short])).states
    filled = np.pad(short, (0, 160 - num_samples))
    torch.testing.assert_close(states, model.encode(model.features([filled])).states)
    torch.testing.assert_close(
        states, model.encode(model.features([short, sounds[1]])).states[:1, :1], atol=1e-5, rtol=1e-4
    )


@torch.no_grad()
def test_steps_equal_the_whole_row(model, sounds):
    memory = model.encode(model.features(sounds))
    tokens = torch.randint(3, len(model.tokenizer), (6, 7))
    hidden = model.decoder(tokens, memory.states, memory.num_frames)
    cache = model.start(memory, rows_per_memory=2, capacity=8)
    steps = torch.cat(
        [
            model.step(tokens[:, :4], cache),
            model.step(tokens[:, 4:5], cache),
            model.step(tokens[:, 5:], cache),
        ],
        1,
    )
    torch.testing.assert_close(steps, model.decoder.logits(hidden), atol=1e-5, rtol=1e-4)


def test_loss_of_a_batch_is_the_sum_of_its_parts(model, tmp_path):
    made.make_corpus(tmp_path, 8)
    corpus = made.make_training_data(tmp_path)
    examples = [corpus[(0, i, 1.0)] for i in range(8)]
    with torch.no_grad():
        whole = model.loss(collate(examples, 2))
        parts = [model.loss(collate([example], 2)) for example in examples]
    values = [
        lambda loss: loss.total,
        lambda loss: loss.attention,
        lambda loss: loss.heads["ctc"].total,
        lambda loss: loss.heads["language"].total,
    ]
    for value in values:
        torch.testing.assert_close(value(whole), sum(map(value, parts)), atol=1e-3, rtol=1e-4)
    assert whole.heads["ctc"].count == sum(part.heads["ctc"].count for part in parts)
    assert whole.heads["language"].count == 8
    assert whole.num_tokens == sum(part.num_tokens for part in parts)


def test_without_ctc_batches_and_losses_have_nothing_of_it(tmp_path):
    made.make_corpus(tmp_path, 4)
    corpus = made.make_training_data(tmp_path)
    asked = collate([corpus[(0, i, 1.0)] for i in range(4)], 2)
    assert asked.transcripts is not None
    corpus.examples.transcript_tokenizer = None
    plain = collate([corpus[(0, i, 1.0)] for i in range(4)], 2)
    assert plain.transcripts is None
    own = made.make_model().eval()
    own.config = own.config.model_copy(update={"ctc_weight": 0.0})
    with torch.no_grad():
        loss = own.loss(plain)
        assert loss.heads.keys() == {"language"}
        language = own.config.language_weight * loss.heads["language"].total
        torch.testing.assert_close(loss.total, own.loss(asked).total)
        assert loss.total > 2 * language > 0


def test_loss_of_the_decoder_is_the_smoothed_cross_entropy(model, tmp_path):
    made.make_corpus(tmp_path, 2)
    corpus = made.make_training_data(tmp_path)
    batch = collate([corpus[(0, 0, 1.0)]], 1)
    with torch.no_grad():
        loss = model.loss(batch)
        memory = model.encode(Features(values=batch.features, num_frames=batch.num_frames))
        cache = model.start(memory)
        given = [int(batch.target_language[0]), *batch.targets[0].tolist()]
        expected = 0.0
        for token, wanted in pairwise(given):
            log_probs = model.step(torch.tensor([[token]]), cache)[0, 0].log_softmax(-1)
            expected -= 0.9 * float(log_probs[wanted]) + 0.1 * float(log_probs.mean())
    assert float(loss.attention) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("bits", "tolerance"), [(32, 0.0), (16, 1e-3), (8, 2e-2)])
def test_saved_and_loaded(model, sounds, tmp_path, bits, tolerance):
    save(model, tmp_path, bits=bits)
    again = load(tmp_path)
    assert isinstance(load_any(tmp_path), type(model))
    with torch.no_grad():
        first, second = (m.encode(m.features(sounds)).states for m in (model, again))
    assert float((first - second).norm() / first.norm()) <= tolerance


def test_quantized_rows_are_within_half_a_step():
    weight = torch.randn(7, 3, 5)
    values, scale = quantize_rows(weight)
    assert values.dtype == torch.int8
    error = (dequantize_rows(values, scale) - weight).abs().flatten(1).amax(1)
    assert (error <= scale / 2 * 1.001).all()


def test_a_language_it_does_not_write_is_an_error(model):
    with pytest.raises(SprachbundError, match=r"'fr'.*en, de"):
        model.prompt(Target(language="fr"))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "not JSON"),
        (lambda d: (d / "config.json").write_text('{"family": "parrot"}'), "parrot"),
        (lambda d: (d / "tokenizer.model").unlink(), "tokenizer.model"),
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors"),
        (lambda d: (d / "model.safetensors").write_bytes(b"short"), "safetensors file"),
    ],
)
def test_broken_directories_are_named(model, tmp_path, break_it, message):
    save(model, tmp_path)
    break_it(tmp_path)
    with pytest.raises(SprachbundError, match=message):
        load_any(tmp_path)
