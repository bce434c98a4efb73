"""The recipe from data to table on the tiny size, by the command: four stages, what they leave alone, going on."""

import gzip
import json
import math
import pickle
import re
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from sprachbund.cli import main
from sprachbund.corpora.mixed import MixedSpeechOptions, make_mixed
from sprachbund.data.batch import Batch
from sprachbund.data.loading import Corpus
from sprachbund.errors import SprachbundError
from sprachbund.evaluation.compare import System
from sprachbund.evaluation.lines import HYPOTHESES_FILE, DecodingEvidence, EmbeddedSpan, Line, read_lines
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.evaluation.run import evaluate
from sprachbund.models.base import Target
from sprachbund.models.card import Card
from sprachbund.models.conformer.extension import add_languages
from sprachbund.models.conformer.io import load as load_conformer
from sprachbund.models.conformer.io import save as save_conformer
from sprachbund.models.io import load, locate
from sprachbund.models.speech_llm import STAGES, SpeechLLM, assemble
from sprachbund.models.speech_llm import load as load_speech_llm
from sprachbund.models.speech_llm.stages import Data, enter, frozen_digest
from sprachbund.research import size_file
from sprachbund.research.code_switch import recipe as of_recipe
from sprachbund.research.code_switch.estimate import estimate_memory, step_loss, without_values
from sprachbund.research.code_switch.options import ARMS, BASELINE, CodeSwitchRecipe, run_folder
from sprachbund.research.code_switch.recipe import (
    STAGE_FILE,
    STATES,
    Evaluation,
    _check_scored,
    all_states,
    corpus_of,
    make_stage,
    read_rates,
    run_stage,
    try_rates,
)
from sprachbund.research.code_switch.recipe import run as train_all
from sprachbund.research.code_switch.report import _recalled, _shares, write_table
from sprachbund.research.texts import TEXTS_FILE
from sprachbund.research.tuning import as_json, best_rate
from sprachbund.text.languages import MIXED
from sprachbund.training.check import Shape, probe
from sprachbund.training.checkpoint import LOG_FILE
from sprachbund.training.loop import DivergedError, train
from sprachbund.training.options import TrainingOptions, read_recipe
from tests.models.speech_llm_support import make_model as make_speech_llm
from tests.training.made import make_corpus
from tests.training.made import make_model as make_conformer
from tests.training.ranks import fork_ranks

pytestmark = pytest.mark.slow

SHAPE = Shape(
    num_parameters=200,
    num_trained=200,
    weights=100 * 2**30,
    gradients=10 * 2**30,
    moments=10 * 2**30,
    largest_layer=2**30,
    outside=2**30,
    probed=(2, 5),
    activations={False: (2**30, 4 * 2**30), True: (2**30, 2 * 2**30)},
    utterances=64,
    flops={False: 3e15, True: 4e15},
)
"""Weights for more than a GPU."""
TINY = size_file("code_switch", "tiny")
NAMES = [
    {"phrasebook/mixed/train"},
    {"phrasebook/mixed/train"},
    {"phrasebook/mixed/train", "mixed/train"},
    {"mixed/train", "phrasebook/mixed/train"},
]
CHAIN = "align+monolingual+transition+code-switched"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("recipe")
    make_mixed(directory / "data", MixedSpeechOptions(train_utterances=16, heldout_utterances=2), workers=1)
    (directory / "data" / "spliced-test").symlink_to(directory / "data" / "test")
    assert main(command(directory)) == 0
    return directory


def command(directory: Path) -> list[str]:
    places = ["--data", str(directory / "data"), "--out", str(directory / "run"), "--threads", "1"]
    return ["recipe", "code_switch", "--size", "tiny", *places]


def test_every_arm_has_its_rows(run: Path) -> None:
    rows = json.loads((run / "run" / "table.json").read_text())["rows"]
    arms = [BASELINE, "dense, equal active size", "without transition"]
    speech = ["code-switched", "monolingual", "mixed", "spliced people"]
    assert [(row["speech"], row["arm"]) for row in rows] == [(s, arm) for s in speech for arm in arms]
    first = rows[0]
    assert {
        "chrF",
        "BLEU",
        "WER",
        "span recall %",
        "errors near a switch %",
        "router right %",
        "router right, embedded %",
        "router right, time %",
        "wrong language %",
        "span recall % interval",
        "router right, embedded % interval",
    } <= first.keys()
    assert first["span recall % difference"] == ""
    assert re.fullmatch(
        r"[-+]\d+\.\d\d \([-+]\d+\.\d\d to [-+]\d+\.\d\d\)", rows[1]["span recall % difference"]
    )
    assert first["chrF difference"] == ""
    assert rows[1]["router right %"] == ""


def test_texts_lie_beside_the_table(run: Path) -> None:
    with gzip.open(run / "run" / "texts.jsonl.gz", "rt", encoding="utf-8") as file:
        first, *models = map(json.loads, file)
    lines = list(
        read_lines(run / "run" / "seed-0" / "scores" / "grouped-experts" / "synthetic" / HYPOTHESES_FILE)
    )
    keys = [f"{line.corpus} {line.id} {line.target}" for line in lines]
    assert len(set(keys)) == len(keys)  # equal ids are of different corpora
    assert first["references"] == dict(zip(keys, (line.reference for line in lines), strict=True))
    [baseline] = [model["hypotheses"] for model in models if (model["arm"], model["seed"]) == (BASELINE, 0)]
    assert baseline == dict(zip(keys, (line.hypothesis for line in lines), strict=True))
    assert {model["arm"] for model in models} == {BASELINE, "dense, equal active size", "without transition"}


def test_stages_follow_each_other_and_leave_the_frozen_parts_alone(run: Path) -> None:
    seed = run / "run" / "seed-0" / "groups"
    recipe = read_recipe(CodeSwitchRecipe, TINY)
    chain = [
        run_folder(run / "run", 0, ARMS[BASELINE], recipe.stages_of(ARMS[BASELINE])[:n]) for n in range(1, 5)
    ]
    assert chain[-1].name == CHAIN
    models = [load_speech_llm(path / "model") for path in chain]
    for number, (path, stage) in enumerate(zip(chain, STAGES, strict=True)):
        told = json.loads((path / STAGE_FILE).read_text())
        assert told["stage"]["name"] == stage.name
        assert told["frozen_sha256"] == frozen_digest(models[number], stage)
        card = Card.read(path / "model")
        assert card is not None
        assert {data["name"] for data in card.data} == NAMES[number]
        same, others = (
            {(s, t) for s in recipe.languages for t in recipe.targets if (s == t) is is_same}
            for is_same in (True, False)
        )
        assert card.taught_pairs == (same if number == 0 else same | others)
        assert told["trained"] == sum(
            p.numel() for n, p in models[number].named_parameters() if _moves(n, stage.name)
        )
    assert not any(
        _moves(n, "adapters") and p.abs().max() for n, p in _adapters(models[0]).items() if "lora_B" in n
    )
    assert any(p.abs().max() for n, p in _adapters(models[1]).items() if "lora_B" in n)
    for one, other in pairwise(models):
        assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert recipe.projector.group_size == 2
    assert (seed / "align+monolingual+code-switched" / STAGE_FILE).exists(), "begins where the first arm did"


@pytest.mark.parametrize(("kind", "share"), [("monolingual asr", 1.0), ("code-switched st", 0.5)])
def test_stages_of_translation_transcribe_a_share(run: Path, kind: Data, share: float) -> None:
    recipe = read_recipe(CodeSwitchRecipe, TINY, [f'data="{run / "data"}"', "transcribed=0.5"])
    model = load_speech_llm(run / "run" / "seed-0" / "groups" / CHAIN / "model")
    corpus, rng = corpus_of(recipe, model, [kind], "train", seed=0), np.random.default_rng(0)
    utterances = [corpus.manifests[0][0]] * 300
    drawn = [{recipe.targets[number] for number, _ in corpus.rows(u, rng)} for u in utterances]
    assert np.mean([utterances[0].language in languages for languages in drawn]) == pytest.approx(
        share, abs=0.1
    )
    without = recipe.model_copy(update={"transcribed": 0.0})
    if share < 1:
        corpus = corpus_of(without, model, [kind], "train", seed=0)
        assert all(recipe.targets[n] != u.language for u in utterances for n, _ in corpus.rows(u, rng))


def _moves(name: str, stage: str) -> bool:
    return name.startswith("projector.") or (stage != "align" and ".lora_" in name)


def _adapters(model: SpeechLLM) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if ".lora_" in name}


def test_the_language_model_is_one_of_transformers(run: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = run / "run" / "llm" / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModelForCausalLM.from_pretrained(place)
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.decode(tokenizer.encode("zwölf Äpfel", add_special_tokens=False)) == "zwölf Äpfel"
    loaded = load(run / "run" / "seed-0" / "groups" / CHAIN / "model")
    assert isinstance(loaded, SpeechLLM)
    for name, weight in model.state_dict().items():
        own = dict(loaded.llm.model.named_parameters())
        if result := [w for n, w in own.items() if n.replace(".base_layer.", ".") == name]:
            assert torch.equal(result[0], weight)


def test_a_second_run_makes_nothing_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = read_recipe(CodeSwitchRecipe, TINY)
    left = run_folder(run / "run", 0, ARMS[BASELINE], recipe.stages_of(ARMS[BASELINE])[:2]) / "best"
    left.mkdir()  # as by a process that was killed while it removed what the finished training needs no more
    before = {path: path.stat().st_mtime_ns for path in (run / "run").rglob("model.safetensors")}
    assert main([*command(run), "--json"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (run / "run").rglob("model.safetensors")} == before
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)["rows"]) == 12
    assert "step" not in printed.err
    assert not left.exists()


@pytest.mark.parametrize("number", [0, 2])
def test_a_stage_that_was_interrupted_ends_with_the_same_bits(run: Path, number: int, tmp_path: Path) -> None:
    torch.set_num_threads(1)  # as the run has: sums depend on how they are divided
    recipe = read_recipe(CodeSwitchRecipe, TINY, [f'data="{run / "data"}"'])
    whole = run_folder(run / "run", 0, ARMS[BASELINE], recipe.stages_of(ARMS[BASELINE])[: number + 1])
    stage = recipe.stages_of(ARMS[BASELINE])[number]
    lines: list[str] = []
    for stop in (1, None):
        model = begun(recipe, run, number)
        run_stage(recipe, model, stage, 0, tmp_path, lines.append, stop_after=stop)
        assert (tmp_path / STAGE_FILE).exists() == (stop is None)
    assert "resumed at step 1" in lines
    one, other = load_speech_llm(tmp_path / "model"), load_speech_llm(whole / "model")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_another_process_makes_the_same_stage(run: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)  # as the run has
    recipe = read_recipe(CodeSwitchRecipe, TINY, [f'data="{run / "data"}"'])
    llm, chains = run / "run" / "llm" / "model", recipe.chains(1)
    task = pickle.loads(pickle.dumps(partial(make_stage, recipe, llm, tmp_path, chains)))
    task(0)
    here, there = (run_folder(directory, *chains[0]) for directory in (tmp_path, run / "run"))
    one, other = load_speech_llm(here / "model"), load_speech_llm(there / "model")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert "step 2" in (here / LOG_FILE).read_text(encoding="utf-8")
    assert not list(here.glob("resume*")), "what only a run that goes on needs is gone"


def test_two_processes_that_share_the_weights_train_the_same_stages(run: Path, tmp_path: Path) -> None:
    """Every process holds a shard of the weights; afterwards, one process evaluates and writes the table."""
    out, lines = tmp_path / "run", tmp_path / "lines.txt"
    values = {"arms": (), "llm": str(run / "run" / "llm" / "model"), "data": run / "data"}

    def recipe(**training: bool) -> CodeSwitchRecipe:
        known = read_recipe(CodeSwitchRecipe, TINY, ())
        chosen = known.training.model_copy(update=training)
        return known.model_copy(update={**values, "training": chosen})

    def work(rank: int, count: int) -> None:
        torch.set_num_threads(1)
        train_all(recipe(shard=True), out, report=lambda line: lines.write_text(f"{rank}: {line}"))

    codes = fork_ranks([2], work, tmp_path)
    assert not any(codes.values()), [path.read_text()[-2000:] for path in tmp_path.glob("*/failure.*.txt")]
    assert lines.read_text() == "0: all stages are trained; the same command without torchrun evaluates them"
    folder = Path("seed-0", "groups", CHAIN, "model")
    one, two = (load_speech_llm(place / folder) for place in (run / "run", out))
    start = dict(one.named_parameters())
    assert all(
        torch.equal(value, dict(two.named_parameters())[name])
        for name, value in start.items()
        if not _moves(name, "code-switched")
    )
    assert train_all(recipe(shard=True), out).exists()
    [row] = [row for row in json.loads((out / "table.json").read_text())["rows"] if row["speech"] == "mixed"]
    assert row["arm"] == BASELINE


def test_a_folder_with_another_comparison_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command(run), "--set", "steps.align=3"]) != 0
    assert "steps.align 2, not 3; give another --out" in capsys.readouterr().err


def begun(recipe: CodeSwitchRecipe, run: Path, number: int) -> SpeechLLM:
    """The model as the stage before left it."""
    if number:
        before = recipe.stages_of(ARMS[BASELINE])[:number]
        return load_speech_llm(run_folder(run / "run", 0, ARMS[BASELINE], before) / "model")
    torch.manual_seed(0)
    return assemble(locate(recipe.encoder), run / "run" / "llm" / "model", recipe.config_of(ARMS[BASELINE]))


def test_arms_are_what_they_are_called() -> None:
    recipe = read_recipe(CodeSwitchRecipe, TINY)
    groups, active, total, plain = (
        recipe.projector_of(ARMS[name])
        for name in (BASELINE, "dense, equal active size", "dense, equal total size", "plain mixture")
    )
    assert (groups.num_experts, plain.num_experts, len(plain.groups)) == (4, 4, 1)
    assert (active.num_experts, active.hidden_width, total.hidden_width) == (1, 32, 64)
    assert [s.losses.language for s in recipe.stages_of(ARMS["without language loss"])] == [0.0] * 4
    assert [s.losses.balance for s in recipe.stages_of(ARMS["without balance loss"])] == [0.0] * 4
    for name, missing in (("transition", "transition"), ("stage 1", "align"), ("stage 2", "monolingual")):
        names = [stage.name for stage in recipe.stages_of(ARMS[f"without {name}"])]
        assert names == [stage.name for stage in STAGES if stage.name != missing]
    folders = {run_folder(Path(), 0, arm, recipe.stages_of(arm)) for arm in ARMS.values()}
    assert len(folders) == len(ARMS), "no two arms are the same"
    at_once, plain = (recipe.stages_of(ARMS[name]) for name in ("languages of the utterance", BASELINE))
    assert run_folder(Path(), 0, ARMS["languages of the utterance"], at_once[:2]) == run_folder(
        Path(), 0, ARMS[BASELINE], plain[:2]
    )
    assert [stage.losses.by_frame for stage in (*plain, *at_once)] == [True] * 4 + [False] * 4


def test_what_arms_share_is_trained_once() -> None:
    recipe = read_recipe(CodeSwitchRecipe, TINY, ["seeds=[0, 1]"])
    recipe = recipe.model_copy(update={"arms": tuple(ARMS)})
    counts = []
    for length in range(1, 5):
        chains = recipe.chains(length)
        folders = [run_folder(Path(), *chain) for chain in chains]
        assert len(set(folders)) == len(folders)
        before = {run_folder(Path(), *chain) for chain in recipe.chains(length - 1)} if length > 1 else set()
        assert length == 1 or all(run_folder(Path(), s, arm, st[:-1]) in before for s, arm, st in chains)
        counts.append(len(chains))
    assert counts == [2 * 8, 2 * 9, 2 * 11, 2 * 8]
    ends = {run_folder(Path(), s, arm, recipe.stages_of(arm)) for s in (0, 1) for arm in ARMS.values()}
    every = {run_folder(Path(), *chain) for length in range(1, 5) for chain in recipe.chains(length)}
    assert ends <= every
    assert estimate_memory(recipe).stages == sum(counts)


def test_a_stage_has_the_rates_of_the_stages() -> None:
    recipe = read_recipe(CodeSwitchRecipe, TINY, ["warmup_steps=10", "steps.align=200", "rate_factor=3"])
    options = recipe.options_of(STAGES[0], 1)
    stage = STAGES[0].model_copy(update={"warmup_steps": 10, "learning_rate": 3 * STAGES[0].learning_rate})
    for step in range(200):
        assert options.rate(step) == pytest.approx(stage.rate(step, 200), rel=1e-6)


@pytest.mark.parametrize("encoder", ["whisper", "conformer"])
def test_a_step_is_estimated_within_a_tenth(encoder: str) -> None:
    """Against the bytes and operations of a real step on as much speech, with texts as long as may be."""
    model = make_speech_llm(encoder, projector={"groups": (("es",), ("en",)), "spliced_frames": 1})
    enter(model, STAGES[1])
    model.train()
    sounds = [np.full(4 * 16_000, 0.1, np.float32)] * 3
    features = model.encoder.features(sounds)[0]
    tokens = 96
    batch = Batch(
        features=features,
        num_frames=torch.full((3,), features.shape[1]),
        source_language=torch.tensor([0, 1, 0]),
        target_language=torch.tensor([0, 1] * 3),
        targets=torch.randint(3, 200, (6, tokens)),
        num_targets=torch.full((6,), tokens),
    )
    wanted = probe(model, lambda: model.loss(batch).total)
    changes = [
        f"max_new_tokens={tokens}",
        "rows_per_utterance=2",
        "cache_states=false",
        'training.precision="no"',
    ]
    recipe = read_recipe(CodeSwitchRecipe, TINY, [*changes, "projector.spliced_frames=1"])
    around = model.prompts.around(Target(language="en", source="es"))
    prompt = sum(map(len, around))
    result = probe(model, lambda: step_loss(model, recipe, torch.zeros_like(features), prompt))
    assert result.activations == pytest.approx(wanted.activations, rel=0.1)
    assert result.flops == pytest.approx(wanted.flops, rel=0.1)
    with FakeTensorMode(allow_non_fake_inputs=True):
        without_values(model)
        if encoder == "conformer":
            return  # it counts its states, which is a matter of values
        model.encoder.forward = lambda values, frames: (model.encoder.encoder(values), frames)  # type: ignore[method-assign]
        fake = probe(model, lambda: step_loss(model, recipe, torch.zeros(features.shape), prompt))
    assert fake.activations == pytest.approx(result.activations, rel=0.02)
    assert fake.flops == result.flops


def test_the_published_size_is_counted_and_asks_for_its_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A step of the whole shape is counted in a minute; see above for small ones.
    monkeypatch.setattr(of_recipe, "training_shape", lambda recipe: ("an arm", SHAPE))
    assert main(["recipe", "code_switch", "--size", "paper", "--check", "--json", "--gpus", "8"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["settings"] for row in result["strategies"]][:2] == ["accumulate = 8", "shard = true"]
    assert result["arm"] == "an arm"
    assert (result["encoder"], result["llm"]) == (636_968_960, 7_615_616_512)
    by_name = {arm["name"]: arm for arm in result["arms"]}
    assert by_name[BASELINE]["projector"] == by_name["plain mixture"]["projector"] == 257_984_000
    assert by_name["dense, equal active size"]["projector"] == 81_698_304
    assert main(["recipe", "code_switch", "--size", "paper", "--data", "x", "--out", "y"]) != 0
    printed = capsys.readouterr()
    assert "name it with --set llm=" in printed.err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["arms=['ours']"], "no arm 'ours'; there are grouped experts"),
        (
            ["tuning_rate_factors=[1]", "rate_factors={plain=2}"],
            "tuning_rate_factors finds what rate_factors gives",
        ),
        (['other_models={"plain mixture"=["x"]}'], "other_models has 'plain mixture', which is an arm"),
        (["other_models={ours=[]}"], "other_models names no model directory for 'ours'"),
        (['texts="x.jsonl.gz"'], "texts takes the arms as they wrote; name a model"),
        (
            ["steps.code-swiched=5"],
            "steps names 'code-swiched', which is no stage; these are align, monolingual",
        ),
        (["shares={fr=0.1}"], "shares names 'fr', which is not among the languages spoken, es, en"),
        (["shares={es=1.5}"], "shares.es"),
        (
            ['other_models={"a, b"=["x"], "a b"=["y"]}'],
            "other_models has 'a, b' and 'a b', whose folders have one name",
        ),
        (["steps={align=1}"], "steps has no number for the stage 'monolingual'"),
        (["groups=[['es'],['fr']]"], "targets lacks 'fr', which the first stage transcribes"),
        ([], "has no part train; make it with `sprachbund data make mixed"),
    ],
)
def test_bad_input(changes: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [word for change in changes for word in ("--set", change)]
    places = ["--data", str(tmp_path), "--out", str(tmp_path / "run")]
    assert main(["recipe", "code_switch", "--size", "tiny", *places, *sets]) != 0
    assert said in capsys.readouterr().err


def test_stages_behind_cached_states_are_those_on_the_sound(run: Path, tmp_path: Path) -> None:
    """Of an encoder without adapters, with states of a layer within beside the last ones."""
    sets = [f'data="{run / "data"}"', "lora.encoder=[]", "projector.encoder_layers=[1]"]
    plain = read_recipe(CodeSwitchRecipe, TINY, sets)
    cached = read_recipe(CodeSwitchRecipe, TINY, [*sets, "cache_states=true"])
    stages = plain.stages_of(ARMS[BASELINE])
    assert all("encoder adapters" not in stage.trained for stage in stages)
    models, said, llm = [], list[str](), run / "run" / "llm" / "model"
    all_states(cached, llm, tmp_path, lambda line: None)
    for recipe in (plain, cached):
        torch.manual_seed(0)
        model = assemble(locate(recipe.encoder), llm, recipe.config_of(ARMS[BASELINE]))
        folder = tmp_path / str(recipe.cache_states)
        for stage in stages[:3]:
            run_stage(recipe, model, stage, 0, folder / stage.name, said.append, states=tmp_path / STATES)
        models.append(model)
    with torch.no_grad():
        for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
            # Other sums over the frames of a batch; AdamW makes a step of a rate's size of any gradient.
            torch.testing.assert_close(other, one, rtol=0, atol=2e-4, msg=name)
    # Monolingual and mixed speech, train and dev; no stage has computed any.
    assert len([*(tmp_path / STATES).glob("*.f32")]) == 4
    assert said
    assert not any("states of" in line for line in said)
    with pytest.raises(SprachbundError, match=r"set lora.encoder = \[\]"):
        read_recipe(CodeSwitchRecipe, TINY, ["cache_states=true"])


def test_states_are_those_of_an_encoder_in_16_bits_where_stages_keep_it_so(run: Path, tmp_path: Path) -> None:
    in_bf16 = ['training.precision="bf16"', "training.frozen_bf16=true"]
    sets = [f'data="{run / "data"}"', "cache_states=true", "lora.encoder=[]", *in_bf16]
    recipe, llm, said = read_recipe(CodeSwitchRecipe, TINY, sets), run / "run" / "llm" / "model", list[str]()
    all_states(recipe, llm, tmp_path, lambda line: None)
    model = assemble(locate(recipe.encoder), llm, recipe.config_of(ARMS[BASELINE]))
    stage = recipe.stages_of(ARMS[BASELINE])[0]
    run_stage(
        recipe, model, stage, 0, tmp_path / "stage", said.append, states=tmp_path / STATES, stop_after=1
    )
    assert said
    assert not any("states of" in line for line in said)


def test_scarce_languages_have_less_speech_and_rows_of_their_own(run: Path) -> None:
    sets = [f'data="{run / "data"}"', "shares={es=0.5}", "rate_factors={plain=3.0}"]
    recipe = read_recipe(CodeSwitchRecipe, TINY, sets)
    model = load_speech_llm(run / "run" / "seed-0" / "groups" / CHAIN / "model")
    whole = read_recipe(CodeSwitchRecipe, TINY, sets[:1])
    for part, scarce in (("train", True), ("dev", False)):
        counts = [
            corpus_of(one, model, ["monolingual st"], part, seed=0).manifests[0].languages.tolist()
            for one in (recipe, whole)
        ]
        assert (counts[0].count("es") < counts[1].count("es")) == scarce
        assert counts[0].count("en") == counts[1].count("en")
    stage = recipe.stages_of(ARMS[BASELINE])[0]
    rates = [recipe.options_of(stage, 0, kind).learning_rate for kind in ("groups", "plain")]
    assert rates == pytest.approx([recipe.rate_factor * 1e-4, 3e-4])
    table = write_table(recipe, run / "run")
    every = json.loads(table.read_text())["rows"]
    for speech in ("scarce languages", "other languages"):
        rows = [row for row in every if row["speech"] == speech]
        assert [row["arm"] for row in rows] == list(recipe.all_arms)
        assert all(re.fullmatch(r"\d+\.\d to \d+\.\d", row["span recall % interval"]) for row in rows)
    for shares, own in (({"es": 1.0}, set[str]()), ({"es": 0.5, "en": 0.5}, {"scarce languages"})):
        rows = json.loads(write_table(recipe.model_copy(update={"shares": shares}), run / "run").read_text())[
            "rows"
        ]
        assert {row["speech"] for row in rows} & {"scarce languages", "other languages"} == own
    write_table(whole, run / "run")


def test_rates_are_found_on_dev_once_for_each_kind_of_projector(run: Path, tmp_path: Path) -> None:
    sets = [
        f'data="{run / "data"}"',
        f'llm="{run / "run" / "llm" / "model"}"',
        "arms=['dense, equal active size', 'without transition']",
        "tuning_rate_factors=[1, 30]",
        "tuning_steps=0.5",
    ]
    recipe, lines = read_recipe(CodeSwitchRecipe, TINY, sets), list[str]()
    assert recipe.in_short(30).steps == dict.fromkeys(recipe.steps, 1)
    assert recipe.in_short(30).options_of(STAGES[0], 0, "active").learning_rate == pytest.approx(30e-4)
    table = json.loads(train_all(recipe, tmp_path, report=lines.append).read_text())
    rates = read_rates(recipe, tmp_path)
    assert {kind: list(losses) for kind, losses in rates.items()} == {
        k: [1, 30] for k in ("groups", "active")
    }
    assert table["dev loss by rate factor"] == {kind: as_json(tried) for kind, tried in rates.items()}
    chosen = {kind: best_rate(tried) for kind, tried in rates.items()}
    factors = {row["arm"]: row["rate factor"] for row in table["rows"]}
    assert factors == {
        BASELINE: chosen["groups"],
        "dense, equal active size": chosen["active"],
        "without transition": chosen["groups"],
    }
    assert any(line.startswith("rate factor of the projector 'groups'") for line in lines)
    # What was chosen is what the stages were trained with: steps of AdamW are as long as the rate.
    start = load_speech_llm(tmp_path / "seed-0" / "active" / "align" / "model")
    twin = recipe.model_copy(update={"rate_factors": {"active": chosen["active"]}, "tuning_rate_factors": ()})
    make_stage(
        twin,
        run / "run" / "llm" / "model",
        tmp_path / "twin",
        [(0, ARMS["dense, equal active size"], recipe.stages_of(ARMS[BASELINE])[:1])],
        0,
    )
    again = load_speech_llm(tmp_path / "twin" / "seed-0" / "active" / "align" / "model")
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), again.parameters(), strict=True))
    # Another kind of projector is tuned when its arm is added, and nothing else again.
    assert sorted(path.name for path in (tmp_path / "rates").iterdir()) == ["active.json", "groups.json"]
    before = (tmp_path / "rates" / "groups.json").stat().st_mtime_ns
    more = recipe.model_copy(update={"arms": (*recipe.arms, "plain mixture")})
    try_rates(more, Path(more.llm), tmp_path, lines.append)
    assert (tmp_path / "rates" / "plain.json").exists()
    assert (tmp_path / "rates" / "groups.json").stat().st_mtime_ns == before
    assert estimate_memory(recipe).stages == 4 + 4 + 1 + 2 * 2 * 4


def test_a_rate_at_which_a_stage_breaks_down_is_one_without_a_loss(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[float] = []

    def breaks_down(model: Any, corpus: Any, options: TrainingOptions, *given: Any, **named: Any) -> Any:
        stage = STAGES[1]
        if options.learning_rate == pytest.approx(30 * stage.learning_rate) and isinstance(corpus, Corpus):
            trained.append(options.learning_rate)
            raise DivergedError("the gradient was not finite")
        return train(model, corpus, options, *given, **named)

    monkeypatch.setattr(of_recipe, "train", breaks_down)
    sets = [f'data="{run / "data"}"', "arms=[]", "tuning_rate_factors=[1, 30]", "tuning_steps=0.5"]
    recipe, llm = read_recipe(CodeSwitchRecipe, TINY, sets), run / "run" / "llm" / "model"
    assert STAGES[1].learning_rate != STAGES[0].learning_rate
    for _ in range(2):
        try_rates(recipe, llm, tmp_path, lambda line: None)
        (losses,) = read_rates(recipe, tmp_path).values()
        assert losses[30] == math.inf
        assert math.isfinite(losses[1])
        assert len(trained) == 1  # and no later stage
    higher = recipe.model_copy(update={"tuning_rate_factors": (30,)})
    with pytest.raises(
        SprachbundError, match=r"no training of the projector 'groups' has a finite loss, .* 30; "
    ):
        try_rates(higher, llm, tmp_path / "higher", lambda line: None)


def test_another_system_stands_beside_the_arms(run: Path, tmp_path: Path) -> None:
    """The bundled model with a token for mixed speech, whose transcripts of it are compared with those of the arms."""
    save_conformer(add_languages(load_conformer(locate("bundled")), {MIXED: "mean"}), tmp_path / "model")
    sets = [f'data="{run / "data"}"', f'other_models={{"ours, tuned"=["{tmp_path / "model"}"]}}']
    recipe = read_recipe(CodeSwitchRecipe, TINY, sets)
    rows = json.loads(train_all(recipe, run / "run").read_text())["rows"]
    others = {row["speech"]: row for row in rows if row["arm"] == "ours, tuned"}
    assert others.keys() == {"code-switched", "monolingual", "mixed", "spliced people"}
    assert others["mixed"]["chrF"] > rows[0]["chrF"]
    for row in others.values():
        assert row["chrF difference"]
        assert row["WER"] != ""
        assert row["router right %"] == ""
    assert others["code-switched"]["span recall % difference"]
    scores = run / "run" / "others" / "ours-tuned" / "0" / "synthetic" / HYPOTHESES_FILE
    assert {line.target for line in read_lines(scores)} == {"en", "es", "de", MIXED}

    # The same table without the arms' models, of what they wrote.
    written = recipe.model_copy(update={"texts": run / "run" / TEXTS_FILE})
    again = json.loads(train_all(written, tmp_path / "again").read_text())["rows"]
    expected = [row for row in rows if row["speech"] != "spliced people"]
    assert [(row["speech"], row["arm"]) for row in again] == [(row["speech"], row["arm"]) for row in expected]
    for new, old in zip(again, expected, strict=True):
        assert {name: old[name] for name in new} == new
    assert sorted(path.name for path in (tmp_path / "again").iterdir() if path.is_dir()) == ["others"]

    # A file that was not copied whole is told of before anything is evaluated.
    whole = (run / "run" / TEXTS_FILE).read_bytes()
    (tmp_path / TEXTS_FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SprachbundError, match=f"is no {TEXTS_FILE} of a run"):
        train_all(recipe.model_copy(update={"texts": tmp_path / TEXTS_FILE}), tmp_path / "broken")
    assert not (tmp_path / "broken").exists()
    train_all(recipe.model_copy(update={"other_models": {}}), run / "run")


def test_recall_is_drawn_by_utterances_whatever_they_are_translated_into() -> None:
    def lines(targets: str, different: int = 30) -> list[Line]:
        embedded = (EmbeddedSpan(language="en", said="past", start=0, end=2),)
        return [
            Line(
                id=str(number),
                source="es",
                target=target,
                reference=f"halb sechs {'sehr ' * (number % different)}".strip(),
                hypothesis="halb sechs" if number % 3 else "sieben",
                evidence=DecodingEvidence(),
                switched=True,
                embedded=embedded,
            )
            for number in range(30)
            for target in targets.split()
        ]

    few, many = (
        _shares([System(name="a", runs=[lines(targets)])], _recalled)["a"] for targets in ("de", "de en fr")
    )
    assert few == many
    low, high = map(float, few["span recall % interval"].split(" to "))
    assert few["span recall %"] == pytest.approx(200 / 3)
    # Of 30 utterances, two thirds of which have both words.
    assert high - low == pytest.approx(2 * 1.96 * 100 * (2 / 9 / 30) ** 0.5, rel=0.15)
    # Said twice, every sentence is one of 15, and what it is worth is known no better.
    (twice,) = _shares([System(name="a", runs=[lines("de", 15)])], _recalled).values()
    low_of_twice, high_of_twice = map(float, twice["span recall % interval"].split(" to "))
    assert high_of_twice - low_of_twice == pytest.approx((high - low) * 2**0.5, rel=0.15)


def test_scores_of_another_model_are_not_taken_for_those_of_the_one_that_is_named(tmp_path: Path) -> None:
    """The models of other systems may change in a folder, and their scores are found by name and number."""
    make_corpus(tmp_path / "data", 4)
    save_conformer(make_conformer(), tmp_path / "first")
    test = Evaluation(
        model=tmp_path / "first",
        parts=(tmp_path / "data",),
        out=tmp_path / "others" / "ours" / "0",
        is_other=True,
    )
    options = EvaluationOptions(limit=2, no_speech_per_kind=0, first_segments=0, engine="torch")
    _check_scored([test])
    evaluate(test.parts, test.model, options, out=test.out)
    _check_scored([test])
    second = make_conformer()
    with torch.no_grad():
        second.language_head.bias += 1
    save_conformer(second, tmp_path / "second")
    with pytest.raises(
        SprachbundError, match=r"holds the scores of .*first, and other_models names .*second"
    ):
        _check_scored([replace(test, model=tmp_path / "second")])


def test_every_process_waits_for_the_language_model_before_it_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in ("_text_llm", "wait_for_all_ranks", "all_states", "_train_stages"):
        monkeypatch.setattr(of_recipe, name, lambda *given, name=name: done.append(name))
    recipe = read_recipe(CodeSwitchRecipe, TINY, ["cache_states=true", "lora.encoder=[]"])
    of_recipe._train_all(recipe, tmp_path, print)
    assert done[:3] == ["_text_llm", "wait_for_all_ranks", "all_states"]
