"""The loss and its gradient, against the training loss, transformers and finite differences."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sprachbund.data.loading import Example, collate
from sprachbund.data.manifest import Manifest
from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from sprachbund.models.conformer import Conformer, TransducerPart
from sprachbund.models.sharing_plan import SharingPlan, Split
from sprachbund.models.splitting import split_feed_forwards
from sprachbund.research.gradient_sharing.collect import Collection
from sprachbund.research.gradient_sharing.collect_options import CollectOptions
from sprachbund.research.gradient_sharing.gradients import (
    GradientExample,
    check_decoder,
    choose_modules,
    counted_tensors,
    decoder_loss,
    make_projection,
    probing,
    stream_gradients,
    target_tokens,
)
from sprachbund.research.gradient_sharing.headroom import measure_headroom
from sprachbund.research.gradient_sharing.headroom_options import HeadroomOptions
from tests.models.whisper_support import TINY, make_transformers_model, transplanted
from tests.research.gradient_sharing.made import exact_cosines
from tests.training import made


@pytest.fixture(scope="module")
def model():
    return made.make_model()


@pytest.fixture(scope="module")
def utterances(tmp_path_factory):
    directory = tmp_path_factory.mktemp("made")
    made.make_corpus(directory, 8)
    manifest = Manifest(directory)
    return [
        GradientExample(samples=manifest.samples(i), text=u.text_in("de"), source=u.language, target="de")
        for i, u in enumerate(manifest)
    ]


def _batch(model, utterances):
    """The same utterances as a training batch."""
    mels = model.features([u.samples for u in utterances])
    examples = [
        Example(
            features=mels.values[i, : mels.num_frames[i]],
            source_language=made.LANGUAGES.index(u.source),
            transcript=[],
            rows=[(model.tokenizer.language_id(u.target), target_tokens(model, u.text, u.target))],
        )
        for i, u in enumerate(utterances)
    ]
    return collate(examples, 1)


def gradients(model, batches, parameters):
    """All at once, on the CPU."""
    result = {}
    stream_gradients(model, batches, parameters, result.__setitem__)
    return {name: result[name].cpu() for name in parameters}


def _lengths(result):
    return {name: float(tensor.double().norm()) for name, tensor in result.items()}


def _with_smoothing(model, smoothing):
    other = made.make_model()
    other.load_state_dict(model.state_dict())
    other.config = model.config.model_copy(update={"label_smoothing": smoothing})
    return other.eval()


def test_the_loss_is_the_training_loss_without_smoothing(model, utterances):
    total, count = decoder_loss(model.eval(), utterances)
    batch = _batch(model, utterances)
    trained = _with_smoothing(model, 0.0).loss(batch)
    assert count == trained.num_tokens
    assert total.item() == pytest.approx(trained.attention.item(), rel=1e-5)
    assert total.item() != pytest.approx(_with_smoothing(model, 0.1).loss(batch).attention.item(), rel=1e-3)


def test_heads_other_than_the_decoder_pull_nothing(model, utterances):
    result = torch.autograd.grad(
        decoder_loss(model.eval(), utterances)[0],
        [model.ctc_head.weight, model.language_head.weight],
        allow_unused=True,
    )
    assert result == (None, None)


def test_whisper_against_transformers():
    reference = make_transformers_model(TINY)
    ours = transplanted(reference, TINY)
    rng = np.random.default_rng(0)
    spoken = [
        GradientExample(samples=rng.normal(0, 0.1, n).astype(np.float32), text=text, source="de", target="en")
        for n, text in ((9000, "one"), (20_000, "two words"))
    ]
    total, count = decoder_loss(ours, spoken)
    features = ours.features([u.samples for u in spoken]).values.transpose(1, 2)
    expected, counted = 0.0, 0
    for i, u in enumerate(spoken):
        prompt = ours.prompt(Target(language="en", source="de"))
        text = [*ours.tokens.text_to_tokens(" " + u.text), ours.tokens.end]
        given = torch.tensor([[*prompt, *text[:-1]]])
        logits = reference(input_features=features[i : i + 1], decoder_input_ids=given).logits[0]
        expected += F.cross_entropy(logits[-len(text) :], torch.tensor(text), reduction="sum").item()
        counted += len(text)
    assert count == counted
    assert total.item() == pytest.approx(expected, rel=1e-4)


def test_a_gradient_entry_against_finite_differences(model, utterances):
    batches = [utterances[:4], utterances[4:]]
    parameters = choose_modules(model)["encoder.layers.1.feed_forward_out"]
    with probing(model, parameters.values()):
        result = gradients(model, batches, parameters)
        name = "encoder.layers.1.feed_forward_out.expand.weight"
        place = int(result[name].abs().argmax())
        weights = parameters[name].data.view(-1)

        def loss(change):
            weights[place] += change
            with torch.no_grad():
                sums = [decoder_loss(model, batch) for batch in batches]
            weights[place] -= change
            return sum(float(total) / count for total, count in sums)

        step = 0.02
        slope = (loss(step) - loss(-step)) / (2 * step)
    assert float(result[name][place]) == pytest.approx(slope, rel=0.02)


def test_dropout_is_off_and_the_model_is_left_as_it_was(utterances):
    model = made.make_model(dropout=0.5).train()
    model.encoder.norm.weight.requires_grad_(False)
    parameters = choose_modules(model)["encoder.layers.0.feed_forward_out"]
    with probing(model, parameters.values()):
        first, second = (gradients(model, [utterances[:2]], parameters) for _ in range(2))
        assert sum(p.requires_grad for p in model.parameters()) == len(parameters)
    assert all(torch.equal(first[name], second[name]) for name in parameters)
    assert model.training
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["encoder.norm.weight"]
    assert all(p.grad is None for p in model.parameters())


def test_padding_and_company_change_nothing(model, utterances):
    parameters = choose_modules(model)["encoder.layers.0.feed_forward_out"]
    with probing(model, parameters.values()):
        together = torch.autograd.grad(decoder_loss(model, utterances)[0], list(parameters.values()))
        alone = [
            torch.autograd.grad(decoder_loss(model, [u])[0], list(parameters.values())) for u in utterances
        ]
    for i, whole in enumerate(together):
        torch.testing.assert_close(whole, sum(a[i] for a in alone), rtol=1e-3, atol=1e-4)


def test_modules_by_pattern(model):
    assert list(choose_modules(model)) == [f"encoder.layers.{i}.feed_forward_out" for i in (0, 1)]
    assert list(choose_modules(model, whole_layers=True)) == ["encoder.layers.0", "encoder.layers.1"]
    assert list(choose_modules(model, side="decoder", whole_layers=True)) == ["decoder.layers.0"]
    # A star stays between two dots, and several patterns name each module once, in the model's order.
    chosen = choose_modules(model, ["encoder.layers.1.*", "encoder.layers.*.attention"])
    assert "encoder.layers.1.attention.query" not in chosen
    assert list(chosen)[:2] == ["encoder.layers.0.attention", "encoder.layers.1.feed_forward_in"]
    name, inside = next(iter(chosen.items()))
    wanted = dict(model.get_submodule(name).named_parameters())
    assert list(inside) == [f"{name}.{inner}" for inner in wanted]
    assert all(inside[f"{name}.{inner}"] is parameter for inner, parameter in wanted.items())


@pytest.mark.parametrize(
    "pattern", ["encoder.layer.*.feed_forward_out", "encoder.layers.7.feed_forward_out", "", "[["]
)
def test_a_pattern_that_matches_nothing_is_an_error_with_the_nearest(model, pattern):
    with pytest.raises(SprachbundError, match=r"matches .*nearest: [a-z]+") as caught:
        choose_modules(model, [pattern])
    if "feed" in pattern:
        assert "encoder.layers.*.feed_forward_out" in str(caught.value)


def test_frozen_modules_are_not_matched():
    model = made.make_model()
    model.encoder.layers[0].requires_grad_(False)
    assert list(choose_modules(model)) == ["encoder.layers.1.feed_forward_out"]


def test_noise_counts_nothing():
    assert counted_tensors({"a": 5.0, "b": 200.0, "c": 1e-5}, "de, layer") == ["a", "b"]


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "all gradients are zero"), (float("nan"), "not finite"), (float("inf"), "not finite")],
)
def test_bad_gradients_are_named(value, said):
    with pytest.raises(SprachbundError, match=rf"de, layer 3: .*{said}"):
        counted_tensors({"w": value}, "de, layer 3")


def test_a_broken_weight_is_found(utterances):
    model = made.make_model()
    model.encoder.layers[0].attention.out.weight.data[0, 0] = float("nan")
    parameters = choose_modules(model)["encoder.layers.1.feed_forward_out"]
    with probing(model, parameters.values()):
        result = gradients(model, [utterances[:2]], parameters)
    with pytest.raises(SprachbundError, match="not finite"):
        counted_tensors(_lengths(result), "de, layer 1")


def test_exact_cosines_are_the_mean_over_tensors():
    one = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([5.0, 0.0])}
    other = {"a": torch.tensor([0.0, 2.0]), "b": torch.tensor([3.0, 0.0])}
    assert exact_cosines(one, other) == pytest.approx(0.5)
    assert exact_cosines(one, one) == pytest.approx(1.0)


def test_a_family_without_rows_is_named():
    class Odd:
        name = "odd"

    with pytest.raises(SprachbundError, match="odd"):
        check_decoder(Odd())


def test_a_model_that_writes_by_frames_is_refused_whose_decoder_is_not_trained(model, tmp_path):
    made.make_corpus(tmp_path, 8)
    corpus = Manifest(tmp_path)
    config = model.config.model_copy(update={"transducer": TransducerPart(prediction_width=8, joint_width=8)})
    transducer = Conformer(config, model.tokenizer, model.transcript_tokenizer)
    check_decoder(model)
    options = CollectOptions(utterances=4, batch=2, accumulate=1)
    for measure in (
        lambda: Collection(transducer, [corpus], options, tmp_path / "parts"),
        lambda: measure_headroom(transducer, [corpus], [corpus], HeadroomOptions()),
    ):
        with pytest.raises(
            SprachbundError, match=r"conformer writes frame by frame, and .* take a model that"
        ):
            measure()


def test_in_a_split_model_each_language_pulls_its_own_branch(utterances):
    model = made.make_model()
    module = "encoder.layers.1.feed_forward_out"
    split = Split(module=module, groups=(("de",), ("en",)), shared_ratio=0.5)
    split_feed_forwards(model, SharingPlan(splits=(split,)))
    inside = choose_modules(model, [module])[module]
    with probing(model, inside.values()):
        for other, language in ((1, "de"), (0, "en")):
            result = gradients(model, [[u for u in utterances if u.source == language]], inside)
            counted = counted_tensors(_lengths(result), language)
            assert all(result[n].norm() == 0 for n in inside if f".private.{other}." in n)
            assert set(counted) == {n for n in inside if f".private.{other}." not in n}


@pytest.mark.device
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["count", "gaussian"])
def test_devices_agree(utterances, kind):
    model, projection = made.make_model(), make_projection(kind, 64, 0)
    results, sketches = [], []
    for device in ("cpu", "cuda"):
        parameters = choose_modules(model.to(device))["encoder.layers.0.feed_forward_out"]
        result = {}
        with probing(model, parameters.values()):
            stream_gradients(model, [utterances[:4]], parameters, result.__setitem__)
        assert all(tensor.device.type == device for tensor in result.values())
        sketches.append(np.sum([projection.project(name, [result[name]]) for name in parameters], axis=0))
        results.append({name: tensor.cpu() for name, tensor in result.items()})
    assert exact_cosines(*results) == pytest.approx(1.0, abs=1e-4)
    np.testing.assert_allclose(*sketches, atol=1e-3 * np.abs(sketches[0]).max())
