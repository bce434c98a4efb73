"""Collections: planted agreement is seen, sketches match exact cosines, breaks and processes change nothing."""

import os
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from sprachbund.cli import main
from sprachbund.cli.share import _job
from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer.io import save
from sprachbund.research.gradient_sharing.collect import Block, Collection, CollectJob, run_job
from sprachbund.research.gradient_sharing.collect_options import CollectOptions
from sprachbund.research.gradient_sharing.gradients import cosine_error, probing, stream_gradients
from sprachbund.research.gradient_sharing.sketches import read_sketches, write_sketches
from sprachbund.training.check import LiveTensors
from sprachbund.util.computing import Computing
from tests.research.gradient_sharing.made import exact_cosines, gradients, normalised
from tests.training import made

SMALL = CollectOptions(utterances=8, batch=2, accumulate=2, dimensions=64)


@pytest.fixture(autouse=True)
def one_thread(threads):
    """As in the processes that share a collection: sums depend on how they are divided."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("made")
    made.make_corpus(directory)
    return directory


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The vectors of an unbroken run of one process."""
    torch.set_num_threads(1)
    return _vectors(_collected(corpus, tmp_path_factory.mktemp("whole") / "parts"))


def _collected(corpus, parts, options=SMALL, **given):
    collection = Collection(made.make_model(), [Manifest(corpus)], options, parts, **given)
    collection.run()
    return collection.sketches()


def _vectors(sketches):
    return {(m, k): array for m, keys in sketches.vectors.items() for k, array in keys.items()}


def _same(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


DIRECTIONS = {"de": (1, 0), "nl": (1, 0), "fi": (0, 1), "sw": (-1, 0.5)}


class Planted(nn.Module):
    """Its gradient for an utterance is a direction of the language, and noise of the utterance's own."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(nn.Module() for _ in range(2))
        for layer in self.encoder.layers:
            layer.feed_forward = nn.Linear(40, 30)
        axes = torch.linalg.qr(torch.randn(1230, 2, generator=torch.Generator().manual_seed(0)))[0]
        self.axes = axes.T

    def pairs(self):
        return {(tag, "en") for tag in DIRECTIONS}

    def loss(self, utterances):
        total = 0.0
        for u in utterances:
            noise = torch.randn(1230, generator=torch.Generator().manual_seed(int(u.text))) / 1230**0.5
            pull = torch.tensor(DIRECTIONS[u.source], dtype=torch.float32) @ self.axes + noise
            for layer in self.encoder.layers:
                weights = torch.cat([p.flatten() for p in layer.feed_forward.parameters()])
                total = total + weights @ pull
        return total, len(utterances)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("planted")
    with ManifestWriter(directory) as writer:
        for i in range(160):
            tag = list(DIRECTIONS)[i % 4]
            writer.add(
                np.zeros(16, np.float32),
                text="",
                language=tag,
                speaker="",
                utterance_id=f"u{i}",
                translations={"en": str(i)},
            )
    options = CollectOptions(utterances=40, batch=4, accumulate=2, dimensions=512)
    collection = Collection(
        Planted(),
        [Manifest(directory)],
        options,
        directory / "parts",
        objective=lambda model, utterances: model.loss(utterances),
        fits=lambda *given: True,
    )
    collection.run()
    return collection


def _mean_cosine(sketches, one, other):
    result = sketches.vectors["encoder.layers.1.feed_forward"]
    return float((result[one] @ result[other].T).mean())


def test_planted_agreement_and_conflict_are_seen(planted):
    sketches = planted.sketches()
    # Sums of 8 directions of length one carry noise of length 1/sqrt(8), so the cosines of single vectors shrink.
    agree = 1 / (1 + 1 / 8)
    assert _mean_cosine(sketches, "de", "nl") == pytest.approx(agree, abs=0.1)
    assert _mean_cosine(sketches, "de", "fi") == pytest.approx(0, abs=0.13)
    against = -1 / np.sqrt(1.25) / np.sqrt(1 + 1 / 8) / np.sqrt(1 + 1 / 8 / 1.25)
    assert _mean_cosine(sketches, "de", "sw") == pytest.approx(against, abs=0.1)
    assert sketches.info["num_utterances"] == dict.fromkeys(sorted(DIRECTIONS), 40)


@pytest.mark.parametrize("kind", ["count", "gaussian"])
def test_sketch_cosines_against_exact_ones(corpus, tmp_path, kind):
    options = CollectOptions(utterances=8, batch=2, accumulate=1, dimensions=256, projection=kind)
    collection = Collection(made.make_model(), [Manifest(corpus)], options, tmp_path / "parts")
    collection.run()
    sketches = collection.sketches()
    errors = []
    with probing(collection.model, collection.parameters.values()):
        full = [
            gradients(collection.model, collection._batches(key, vector), collection.parameters)
            for key in collection.rows
            for vector in range(4)
        ]
    for module, inside in collection.modules.items():
        rows = np.concatenate([sketches.vectors[module][key] for key in collection.rows])
        assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
        for i in range(8):
            for j in range(i):
                one, other = ({name: full[k][name] for name in inside} for k in (i, j))
                exact = exact_cosines(one, other)
                errors.append((rows[i] @ rows[j] - exact) / cosine_error(256, exact))
    # All pairs share one projection, so their errors hang together: the bound is wide.
    assert np.sqrt(np.mean(np.square(errors))) < 2
    assert np.abs(errors).max() < 4.5


def _in_one_piece(collection, key, vector, module):
    """A sketch (d,) from whole gradients: one call of autograd, tensors normalised, projected, added up."""
    with probing(collection.model, collection.parameters.values()):
        result = gradients(collection.model, collection._batches(key, vector), collection.parameters)
    unit = normalised(result, collection.modules[module])
    total = sum(collection.projection.project(name, [tensor])[0] for name, tensor in unit.items())
    return total / np.linalg.norm(total)


@pytest.mark.parametrize(("by", "what"), [("source", "one language"), ("pair", "one pair")])
def test_one_language_is_refused_before_its_gradients_are_collected(corpus, tmp_path, by, what):
    options = replace(SMALL, by=by, languages=("de>en",) if by == "pair" else ("de",))
    collection = Collection(made.make_model(), [Manifest(corpus)], options, tmp_path)
    with pytest.raises(SprachbundError, match=f"there is {what} only, de.*; conflict needs two: add data"):
        collection.check_languages()
    Collection(made.make_model(), [Manifest(corpus)], SMALL, tmp_path / "both").check_languages()


def test_one_vector_is_refused_by_the_command(tmp_path, capsys):
    line = [
        "share",
        "analyse",
        "bundled",
        str(tmp_path),
        "--utterances",
        "16",
        "--out",
        str(tmp_path / "a.npz"),
    ]
    assert main(line) == 2
    assert "is 16, which make one vector of 4 x 4, and" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "accumulate"), [("count", 1), ("count", 2), ("gaussian", 2)])
def test_sketches_equal_those_of_whole_gradients(corpus, tmp_path, kind, accumulate):
    options = CollectOptions(
        modules=("encoder.layers.*", "encoder.layers.1.feed_forward_out", "decoder.layers.*"),
        utterances=8,
        batch=2,
        accumulate=accumulate,
        dimensions=64,
        projection=kind,
    )
    collection = Collection(made.make_model(), [Manifest(corpus)], options, tmp_path / "parts")
    collection.run()
    for module, keys in collection.sketches().vectors.items():
        for key, rows in keys.items():
            for vector, row in enumerate(rows):
                np.testing.assert_allclose(
                    row, _in_one_piece(collection, key, vector, module), atol=2e-7, err_msg=f"{module} {key}"
                )


class Deep(nn.Module):
    """Layers whose weights are large beside their activations."""

    def __init__(self, count):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(500, 500, bias=False) for _ in range(count))

    def loss(self):
        states = torch.ones(1, 500)
        for layer in self.layers:
            states = layer(states)
        return states.sum(), 1


@pytest.mark.parametrize("num_batches", [1, 2])
def test_gradients_are_dropped_while_the_pass_goes_on(num_batches):
    """Of one batch no more than a few tensors are held, whatever their number; of several, the sums."""
    model, each = Deep(24), 4 * 500 * 500
    parameters = dict(model.named_parameters())
    held, seen = LiveTensors(model), []
    with probing(model, parameters.values()), held:
        stream_gradients(
            model,
            [[]] * num_batches,
            parameters,
            lambda name, gradient: seen.append(name),
            lambda model, utterances: model.loss(),
        )
    assert sorted(seen) == sorted(parameters)
    least = (num_batches > 1) * 24 * each
    assert least <= held.peak < least + 4 * each


def test_a_shared_weight_counts_for_each_of_its_names(corpus):
    model, names = Deep(2), ("layers.0.weight", "layers.1.weight")
    model.layers[1].weight = model.layers[0].weight
    parameters = dict.fromkeys(names, model.layers[0].weight)
    result = {}
    with probing(model, parameters.values()):
        stream_gradients(model, [[]], parameters, result.__setitem__, lambda model, utterances: model.loss())
        [expected] = torch.autograd.grad(model.loss()[0], [model.layers[0].weight])
    assert all(torch.equal(result[name], expected.flatten()) for name in names)


def test_a_killed_run_goes_on_to_the_same_bits(corpus, whole, tmp_path):
    parts = tmp_path / "parts"
    child = os.fork()
    if child == 0:  # dies while it makes the third vector
        progress = lambda done, total: done == 6 and os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
        try:
            Collection(made.make_model(), [Manifest(corpus)], SMALL, parts).run(progress=progress)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list(parts.glob("block.*.npz"))) == 2
    collection = Collection(made.make_model(), [Manifest(corpus)], SMALL, parts)
    assert collection.cost().passes_left == 4
    seen = []
    collection.run(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(6, 8), (8, 8)]
    assert _same(_vectors(collection.sketches()), whole)


@pytest.mark.slow
def test_two_processes_give_the_same_bits(corpus, whole, tmp_path):
    save(made.make_model(), tmp_path / "model")
    job = CollectJob(model=str(tmp_path / "model"), data=(corpus,), options=SMALL, parts=tmp_path / "parts")
    collection = job.prepare()
    seen = []
    run_job(job, collection, Computing(workers=2), lambda done, total: seen.append(done))
    assert _same(_vectors(collection.sketches()), whole)
    assert seen == sorted(seen)


def test_a_ray_cluster_gives_the_same_bits(corpus, whole, tmp_path):
    pytest.importorskip("ray")
    save(made.make_model(), tmp_path / "model")
    job = CollectJob(model=str(tmp_path / "model"), data=(corpus,), options=SMALL, parts=tmp_path / "parts")
    collection = job.prepare()
    run_job(job, collection, Computing(workers=2, ray="local"), lambda done, total: None)
    assert _same(_vectors(collection.sketches()), whole)


def test_shares_are_disjoint_and_whole(corpus, whole, tmp_path):
    collection = Collection(made.make_model(), [Manifest(corpus)], SMALL, tmp_path / "parts")
    for rank, left in ((2, 3), (0, 1), (1, 0)):
        collection.run((rank, 3))
        assert sum(not block.made for block in collection.blocks) == left
    assert _same(_vectors(collection.sketches()), whole)


def test_gaussian_blocks_hold_several_vectors(corpus, tmp_path):
    options = CollectOptions(utterances=8, batch=2, accumulate=2, dimensions=64, projection="gaussian")
    collection = Collection(made.make_model(), [Manifest(corpus)], options, tmp_path / "parts")
    assert [(block.key, len(block.vectors)) for block in collection.blocks] == [("de", 2), ("en", 2)]


def test_what_is_told_beforehand(corpus, tmp_path):
    collection = Collection(made.make_model(), [Manifest(corpus)], SMALL, tmp_path / "parts")
    cost = collection.cost()
    parameters = 2 * (2 * 32 + 32 * 32 + 32 + 32 * 32 + 32)
    assert (cost.passes, cost.passes_left, cost.parameters) == (8, 8, parameters)
    assert cost.file_bytes == 2 * 2 * 2 * 64 * 4
    assert cost.memory_bytes >= 4 * parameters
    assert 0 < cost.seconds < 60
    collection.run()
    assert collection.cost().passes_left == 0
    assert collection.cost().seconds == 0


def test_the_file_says_how_it_was_made(corpus, tmp_path):
    sketches = _collected(corpus, tmp_path / "parts", identity={"model_hash": "abc"})
    write_sketches(tmp_path / "g.npz", sketches)
    info = read_sketches(tmp_path / "g.npz").info
    module = "encoder.layers.1.feed_forward_out"
    assert info["model_hash"] == "abc"
    assert info["inner_width"][module] == 32
    assert info["side"][module] == "source"
    assert (info["granularity"], info["seed"], info["cost"]["passes"]) == ("language", 0, 8)


def test_by_target_the_decoder_is_looked_at(corpus, tmp_path):
    options = CollectOptions(
        modules=("decoder.layers.*",), by="target", utterances=4, batch=2, accumulate=1, dimensions=16
    )
    sketches = _collected(corpus, tmp_path / "parts", options)
    assert sketches.info["side"] == {"decoder.layers.0": "target"}
    assert sketches.languages == ("de", "en")


def test_pairs(corpus, tmp_path):
    options = CollectOptions(by="pair", utterances=4, batch=2, accumulate=1, dimensions=16)
    sketches = _collected(corpus, tmp_path / "parts", options)
    assert sketches.languages == ("de>de", "de>en", "en>de", "en>en")
    assert sketches.info["granularity"] == "pair"


def test_overlapping_modules_do_not_disturb_each_other(corpus, tmp_path, whole):
    modules = ("encoder.layers.*.feed_forward_out", "encoder.layers.1")
    options = CollectOptions(modules=modules, utterances=8, batch=2, accumulate=2, dimensions=64)
    result = _vectors(_collected(corpus, tmp_path / "parts", options))
    for name, array in whole.items():
        np.testing.assert_allclose(result[name], array, atol=1e-5)


def test_a_folder_of_other_settings_is_refused(corpus, tmp_path):
    Collection(made.make_model(), [Manifest(corpus)], SMALL, tmp_path)
    others = [
        (
            {"options": CollectOptions(utterances=8, batch=2, accumulate=2, dimensions=64, seed=1)},
            "seed 0, not 1",
        ),
        ({"identity": {"model_hash": "other"}}, "model_hash none, not other"),
    ]
    for changes, said in others:
        given = {"options": SMALL, "parts": tmp_path, **changes}
        with pytest.raises(SprachbundError, match=said):
            Collection(made.make_model(), [Manifest(corpus)], **given)


def test_missing_and_broken_blocks_are_named(corpus, tmp_path):
    collection = Collection(made.make_model(), [Manifest(corpus)], SMALL, tmp_path)
    with pytest.raises(SprachbundError, match=r"block\.000000\.npz is missing"):
        collection.sketches()
    collection.run()
    collection.blocks[1].path.write_bytes(b"PK\x03\x04 not whole")
    with pytest.raises(SprachbundError, match=r"block\.000001\.npz is not a whole \.npz file .*delete it"):
        collection.sketches()


def test_a_module_without_gradient_is_named_with_the_language(corpus, tmp_path):
    model = made.make_model()
    model.encoder.layers[1].feed_forward_out.contract.weight.data.zero_()
    options = CollectOptions(
        modules=("encoder.layers.*.feed_forward_out.expand",), utterances=4, batch=2, accumulate=1
    )
    collection = Collection(model, [Manifest(corpus)], options, tmp_path)
    with pytest.raises(SprachbundError, match=r"de, encoder\.layers\.1\.feed_forward_out\.expand: .*zero"):
        collection.run()


@pytest.mark.slow
def test_an_error_in_a_process_reaches_the_user(tmp_path):
    job = CollectJob(model=str(tmp_path / "nowhere"), data=(), options=SMALL, parts=tmp_path)
    blocks = [Block(key="de", vectors=range(1), path=tmp_path / f"{n}.npz") for n in range(2)]
    with pytest.raises(SprachbundError, match="nowhere"):
        run_job(job, SimpleNamespace(blocks=blocks), Computing(workers=2), lambda done, total: None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"utterances": 17}, "utterances is 17, .* take 32 or 48, or change batch or accumulate"),
        ({"utterances": 3}, "take 32 or 48"),
        ({"batch": 0}, "batch is 0; give 1 or more"),
        ({"dimensions": 1}, "dimensions is 1; give 2 to 4096"),
    ],
)
def test_options_that_cannot_be(changes, said):
    with pytest.raises(SprachbundError, match=said):
        CollectOptions(**changes)


def test_a_collection_does_not_go_on_with_other_texts_or_sound(corpus, tmp_path):
    save(made.make_model(), tmp_path / "model")

    def job(data):
        return _job(
            str(tmp_path / "model"), [data], SMALL, tmp_path / "g.npz", device="cpu", offline=True, threads=1
        )

    (tmp_path / "same").symlink_to(corpus)
    job(corpus).prepare()
    job(tmp_path / "same").prepare()
    for file, old, new in (("cuts.00000.jsonl", b"one", b"two"), ("audio.00000.wav", None, None)):
        other = tmp_path / file
        shutil.copytree(corpus, other)
        path, sums = other / file, other / "shard.00000.sha256"
        content = path.read_bytes()
        path.write_bytes(content[:-2] + b"\1\1" if old is None else content.replace(old, new))
        sums.unlink()
        with pytest.raises(SprachbundError, match=r"was begun with another data"):
            job(other).prepare()
