"""Plans carried out: the weights the branches start from, against what the formulas say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from sprachbund.cli import build_app
from sprachbund.compression.quantization import stored_size
from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer.io import load, save
from sprachbund.models.io import load as load_any
from sprachbund.models.sharing_plan import FILE, ModuleEvidence, SharingPlan
from sprachbund.nn.feed_forward import FeedForward, Route
from sprachbund.research.gradient_sharing.gradients import choose_rows, decoder_loss
from sprachbund.research.gradient_sharing.surgery import apply_plan, collect_importance
from sprachbund.training.loop import train
from tests.models import split_support as made
from tests.models.split_support import DECODER, ENCODER, LANGUAGES
from tests.models.whisper_support import make_directory
from tests.training import made as training

ONE_GROUP = (LANGUAGES,)


def random_importance(
    module: str = ENCODER, width: int = 48, seed: int = 0
) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {module: {tag: torch.rand(width, generator=generator) for tag in LANGUAGES}}


def applied(split, importance=None, **sizes: object):
    """A model before and after."""
    model = made.make_model(**sizes)
    before = made.make_model(**sizes)
    apply_plan(model, made.make_plan(split), importance=importance)
    return before.get_submodule(split.module), model.get_submodule(split.module), model


@pytest.mark.parametrize("start", ["neuron", "svd", "random"])
def test_applied_twice_it_gives_the_same_weights(start: str) -> None:
    split = made.make_split(start=start)
    first, second = (applied(split, random_importance())[2].state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    seeded = applied(made.make_split(start=start, seed=1), random_importance())[2].state_dict()
    changed = {name for name in first if not torch.equal(first[name], seeded[name])}
    assert bool(changed) == (start != "neuron")  # "svd" draws for the units beyond its directions


@pytest.mark.parametrize("module", [ENCODER, DECODER])
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.75])
def test_by_neuron_with_one_group_the_function_stays_what_it_was(module: str, ratio: float) -> None:
    width = 48 if module == ENCODER else 128
    split = made.make_split(module, start="neuron", groups=ONE_GROUP, shared_ratio=ratio)
    old, new, _ = applied(split, random_importance(module, width))
    x = torch.randn(4, 5, 32)
    torch.testing.assert_close(new(x, Route(source=torch.tensor([0, 1, 2, 3]))), old(x), atol=1e-5, rtol=1e-5)


def test_by_neuron_the_units_are_those_that_matter_most() -> None:
    result = random_importance()[ENCODER]
    split = made.make_split(start="neuron", private_shares=(0.25, 0.75))
    old, new, _ = applied(split, {ENCODER: result})
    shares = {tag: (value / value.sum()).numpy() for tag, value in result.items()}
    overall = sum(shares.values())
    shared = sorted(range(48), key=lambda unit: -overall[unit])[:24]
    assert units(new.shared, old) == shared
    rest = sorted(set(range(48)) - set(shared))
    for branch, group, width in zip(new.private, made.GROUPS, (6, 18), strict=True):
        value = sum(shares[tag] for tag in group)
        assert units(branch, old) == sorted(rest, key=lambda unit: -value[unit])[:width]
        assert not branch.contract.bias.any()
    assert torch.equal(new.shared.contract.bias, old.contract.bias)
    assert all(torch.equal(a, b) for a, b in zip(new.norm.parameters(), old.norm.parameters(), strict=True))


def units(branch, old: FeedForward) -> list[int]:
    """Which units of the old feed-forward a branch is made of, found by their weights."""
    result = []
    for row, bias, column in zip(
        branch.expand.weight, branch.expand.bias, branch.contract.weight.T, strict=True
    ):
        unit = int((old.expand.weight - row).abs().sum(1).argmin())
        assert torch.equal(old.expand.weight[unit], row)
        assert old.expand.bias[unit] == bias
        assert torch.equal(old.contract.weight[:, unit], column)
        result.append(unit)
    return result


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.75])
def test_by_svd_the_branches_are_the_published_directions(ratio: float) -> None:
    energy = (0.3, 0.7)
    old, new, _ = applied(made.make_split(start="svd", shared_ratio=ratio, evidence=make_evidence(energy)))
    w1, w2 = old.expand.weight.detach().double().numpy(), old.contract.weight.detach().double().numpy()
    equivalent = (w2 @ w1).T
    u, s, vt = np.linalg.svd(equivalent)
    count = min(int(32 * ratio), new.shared.expand.out_features)
    shared = (u[:, :count] * s[:count]) @ vt[:count]
    np.testing.assert_allclose(product(new.shared), shared, atol=1e-5)
    root = np.linalg.norm(new.shared.expand.weight.detach().numpy(), axis=1)
    np.testing.assert_allclose(root[:count], np.sqrt(s[:count]), rtol=1e-4)
    assert root[count:].all()  # units beyond the directions have weights in, and none out
    assert not new.shared.contract.weight[:, count:].any()
    biases = [branch.expand.bias for branch in (new.shared, *new.private)]
    assert torch.equal(torch.cat(biases), old.expand.bias)
    for branch, share in zip(new.private, energy, strict=True):
        u, s, vt = np.linalg.svd(share * (equivalent - shared))
        width = min(branch.expand.out_features, 32)
        np.testing.assert_allclose(product(branch), (u[:, :width] * s[:width]) @ vt[:width], atol=1e-5)
        assert not branch.contract.bias.any()
    assert torch.equal(new.shared.contract.bias, old.contract.bias)


def test_by_svd_energies_go_with_their_groups_and_are_not_those_of_others() -> None:
    energy, ratio = (0.3, 0.7), 0.5
    first, second = made.GROUPS
    evidence = make_evidence(energy)

    def private(groups, **changes) -> list[np.ndarray]:
        split = made.make_split(start="svd", shared_ratio=ratio, groups=groups, **changes)
        return [product(branch) for branch in applied(split)[1].private]

    in_order = private((first, second), evidence=evidence)
    turned = private((second, first), evidence=evidence)
    np.testing.assert_allclose(turned[0], in_order[1], atol=1e-5)
    np.testing.assert_allclose(turned[1], in_order[0], atol=1e-5)
    others = ((*first, second[0]), second[1:])  # by hand: nothing was measured of these
    by_width = private(others, private_shares=(0.4, 0.6))
    edited = private(others, private_shares=(0.4, 0.6), evidence=evidence)
    for one, other in zip(edited, by_width, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("start", ["svd", "random"])
def test_every_unit_gets_a_gradient_from_the_first_step(start: str) -> None:
    """With zeros on both sides, 48 of 64 shared units were once dead for ever."""
    _, new, _ = applied(made.make_split(start=start, shared_ratio=0.75, evidence=make_evidence((0.3, 0.7))))
    for branch in (new.shared, *new.private):
        x = torch.randn(64, branch.expand.in_features, generator=torch.Generator().manual_seed(0))
        branch.zero_grad()
        branch(x).sum().backward()
        into = branch.expand.weight.grad.abs().sum(1) + branch.contract.weight.grad.abs().sum(0)
        assert (into > 0).all()


def test_by_svd_nothing_is_lost_where_everything_has_room() -> None:
    """Linear parts of both branches of a group of all the energy add up to the linear part that was."""
    split = made.make_split(start="svd", groups=ONE_GROUP, shared_ratio=0.5)
    old, new, _ = applied(split, feed_forward_width=64)
    whole = (old.contract.weight @ old.expand.weight).T.detach().numpy()
    np.testing.assert_allclose(product(new.shared) + product(new.private[0]), whole, atol=1e-5)


def product(branch) -> np.ndarray:
    return (branch.contract.weight @ branch.expand.weight).T.detach().double().numpy()


def make_evidence(energy: tuple[float, ...]) -> ModuleEvidence:
    four = tuple(tuple(float(i == j) for j in range(4)) for i in range(4))
    return ModuleEvidence(
        languages=LANGUAGES,
        num_vectors=dict.fromkeys(LANGUAGES, 8),
        similarity=four,
        mean_cosines=four,
        self_similarity=1.0,
        cross_similarity=0.0,
        delta=1.0,
        purity=1.0,
        purity_by_language=dict.fromkeys(LANGUAGES, 1.0),
        groups=made.GROUPS,
        spread=1.0,
        separation=1.0,
        agreement=1.0,
        energy_by_language=dict.fromkeys(LANGUAGES, 0.25),
        energy_shares=energy,
    )


@pytest.mark.parametrize(
    ("split", "importance", "message"),
    [
        (made.make_split("encoder.layers.7.feed_forward_out"), None, "no module 'encoder.layers.7"),
        (made.make_split(start="neuron"), None, "de, en, fr, ru is not known; give data"),
        (made.make_split(start="neuron"), random_importance(width=40), "importance for de is not 48 finite"),
        (made.make_split(groups=(("de",), ("xx",))), None, "'xx'"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_changed(split, importance, message: str) -> None:
    model = made.make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SprachbundError, match=message):
        apply_plan(model, made.make_plan(split), importance=importance)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.sharing_plan is None


def test_a_split_model_is_not_split_again() -> None:
    _, _, model = applied(made.make_split())
    with pytest.raises(SprachbundError, match="split already"):
        apply_plan(model, made.make_plan(made.make_split(made.EARLY)))


def test_importance_is_the_mean_product_of_activation_and_gradient() -> None:
    model = made.make_model()
    batches = {tag: [made.make_batch(model, [n, n], ["de"], seed=n)] for n, tag in enumerate(LANGUAGES[:2])}
    result = collect_importance(model, batches, [ENCODER, DECODER])
    gates = {}
    for module in (ENCODER, DECODER):
        contract = model.get_submodule(module).contract

        def scaled(_, inputs, module=module):
            gates[module] = torch.ones_like(inputs[0], requires_grad=True)
            return (inputs[0] * gates[module],)

        contract.register_forward_pre_hook(scaled)
    for tag in batches:
        model.loss(batches[tag][0]).total.backward()
        # The derivative by a factor on the activation is activation times gradient.
        for module, gate in gates.items():
            expected = gate.grad.abs().flatten(0, -2).sum(0)
            torch.testing.assert_close(result[module][tag].float(), expected, rtol=1e-3, atol=1e-4)


def test_importance_leaves_the_model_as_it_was_and_names_what_is_dead() -> None:
    model = made.make_model().train()
    model.ctc_head.requires_grad_(False)
    batches = {"de": [made.make_batch(model, [0], ["de"])]}
    collect_importance(model, batches, [ENCODER])
    assert model.training
    assert [p.requires_grad for p in model.ctc_head.parameters()] == [False, False]
    assert all(p.requires_grad and p.grad is None for p in model.encoder.parameters())
    with pytest.raises(SprachbundError, match=f"{ENCODER}: for de no gradient"):
        collect_importance(
            model, batches, [ENCODER], loss=lambda b: model.decoder.positions.sum() + 0 * run(model, b)
        )
    with pytest.raises(SprachbundError, match="for fr no gradient"):
        collect_importance(model, {"fr": []}, [ENCODER])


def run(model, batch) -> torch.Tensor:
    return model.loss(batch).total


def test_training_goes_on_from_a_split_model_and_ends_in_one(tmp_path: Path) -> None:
    training.make_corpus(tmp_path / "data", 16)
    corpus = training.make_training_data(tmp_path / "data")
    model = training.make_model()
    plan = SharingPlan.model_validate(
        {"splits": [{"module": ENCODER, "groups": [["de"], ["en"]], "shared_ratio": 0.5, "start": "svd"}]}
    )
    apply_plan(model, plan)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    change = {"trainable": (f"{ENCODER}.*",), "rates": {f"{ENCODER}.private.*": 1e-2}, "learning_rate": 1e-3}
    model = train(model, corpus, training.options(6, **change), tmp_path / "run")
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith(ENCODER)}
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())


RUNNER = CliRunner()


def command(*arguments: object):
    return RUNNER.invoke(build_app(), ["share", "apply", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, a corpus in its languages, and a plan."""
    directory = tmp_path_factory.mktemp("place")
    save(made.make_model(), directory / "model")
    texts = dict(zip(LANGUAGES, dict.fromkeys(made.TEXTS), strict=True))
    with ManifestWriter(directory / "data") as writer:
        for i, sound in enumerate(made.make_sounds(24)):
            language = LANGUAGES[i % 4]
            others = {tag: text for tag, text in texts.items() if tag != language}
            writer.add(
                sound,
                text=texts[language],
                language=language,
                speaker="s",
                utterance_id=f"u{i}",
                translations=others,
            )
    pair = made.make_split(
        DECODER, side="pair", start="neuron", groups=(("de>en", "fr>ru"), ("ru>de",)), shared_ratio=0.25
    )
    made.make_plan(made.make_split(start="neuron"), pair).write(directory / "plan.json")
    return directory


def test_the_command_writes_a_model_that_loads(folder: Path, tmp_path: Path) -> None:
    arguments = (folder / "model", folder / "plan.json", "--data", folder / "data", "--utterances", 4)
    done = command(*arguments, "--out", tmp_path / "a", "--json")
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    encoder, decoder = values["splits"]
    assert encoder["shared_width"] == 24
    assert encoder["private_widths"] == [12, 12]
    assert encoder["without_group"] == []
    assert decoder["private_widths"] == [48, 48]
    model = load_any(tmp_path / "a")
    assert sum(p.numel() for p in model.parameters()) == values["parameters"]
    assert SharingPlan.read(tmp_path / "a") == SharingPlan.read(folder / "plan.json")
    again = command(*arguments, "--out", tmp_path / "b")
    assert "parameters" in again.stdout
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_command_measures_every_language_on_its_own_data(folder: Path, tmp_path: Path) -> None:
    options = ("--data", folder / "data", "--utterances", 6, "--out", tmp_path / "m")
    done = command(folder / "model", folder / "plan.json", *options)
    assert done.exit_code == 0, done.output
    model, manifests = load(folder / "model"), [Manifest(folder / "data")]
    importance = {}
    for split in SharingPlan.read(folder / "plan.json").splits:
        tags = [tag for group in split.groups for tag in group]
        rows = choose_rows(model, manifests, by=split.side, count=6, seed=0, languages=tags).rows
        spoken = {tag: [[row.read(manifests)] for row in own] for tag, own in rows.items()}
        assert {(s.source, s.target) for tag in spoken for (s,) in spoken[tag]} >= (
            {("de", "en"), ("fr", "ru"), ("ru", "de")} if split.side == "pair" else set()
        )
        importance |= collect_importance(
            model, spoken, [split.module], loss=lambda batch: decoder_loss(model, batch)[0]
        )
    apply_plan(model, SharingPlan.read(folder / "plan.json"), importance=importance)
    written = load(tmp_path / "m").state_dict()
    assert all(torch.equal(written[name], value) for name, value in model.state_dict().items())


def test_the_start_can_be_chosen_and_is_written_down(folder: Path, tmp_path: Path) -> None:
    done = command(
        folder / "model", folder / "plan.json", "--start", "svd", "--bits", 8, "--out", tmp_path / "m"
    )
    assert done.exit_code == 0, done.output
    assert {split.start for split in SharingPlan.read(tmp_path / "m" / FILE).splits} == {"svd"}
    assert load_any(tmp_path / "m").sharing_plan is not None


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, (), "measures hidden units on data"),
        ({}, ("--data", "DATA", "--utterances", "99"), "take fewer (--utterances)"),
        ({"splits": []}, (), "splits nothing"),
        ({"model_hash": "0" * 64}, ("--start", "svd"), "another model than"),
        ({}, ("--start", "svd", "--out", "DATA"), "choose another --out"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    folder, tmp_path, change, arguments, message
) -> None:
    plan = {**json.loads((folder / "plan.json").read_text()), **change}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    given = [str(folder / "data") if a == "DATA" else a for a in arguments]
    out = [] if "--out" in given else ["--out", str(tmp_path / "out")]
    done = command(folder / "model", tmp_path / "plan.json", *given, *out)
    assert message in str(done.exception)
    assert isinstance(done.exception, SprachbundError)
    assert not (tmp_path / "out").exists()


def test_a_plan_of_another_model_can_be_insisted_on(folder: Path, tmp_path: Path) -> None:
    plan = {**json.loads((folder / "plan.json").read_text()), "model_hash": "0" * 64}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    options = ("--start", "random", "--any-model", "--out", tmp_path / "out")
    assert command(folder / "model", tmp_path / "plan.json", *options).exit_code == 0


def test_whisper_is_split_by_the_command_too(tmp_path: Path) -> None:
    make_directory(tmp_path / "whisper")
    split = made.make_split("encoder.layers.1.feed_forward", groups=(("de",), ("en", "fr")), start="svd")
    made.make_plan(split).write(tmp_path / "plan.json")
    done = command(tmp_path / "whisper", tmp_path / "plan.json", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert load_any(tmp_path / "out").sharing_plan == made.make_plan(split)
    assert "has no group for" in done.output
    for bits in (8, 16):
        out = tmp_path / str(bits)
        done = command(tmp_path / "whisper", tmp_path / "plan.json", "--bits", bits, "--out", out)
        assert done.exit_code == 0, done.output
        assert load_any(out).sharing_plan == made.make_plan(split)
        assert stored_size(out).bits == bits
