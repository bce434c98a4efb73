"""Models split by language: built, saved, loaded, and never run under another mapping than their own."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from sprachbund.errors import SprachbundError
from sprachbund.models import whisper
from sprachbund.models.base import Target
from sprachbund.models.conformer.io import load, save
from sprachbund.models.io import load as load_any
from sprachbund.models.sharing_plan import FILE, SharingPlan
from sprachbund.models.splitting import mapping_digest, split_feed_forwards, target_languages
from sprachbund.nn.feed_forward import SplitFeedForward
from tests.models import split_support as made
from tests.models.whisper_support import TINY, make_directory

SOUNDS = made.make_sounds(4)


def states(model, languages: list[int], sounds=SOUNDS) -> torch.Tensor:
    features = model.features(sounds)
    with torch.no_grad():
        return model.encode(replace(features, source_language=torch.tensor(languages))).states


def rewrite(path: Path, change) -> None:
    plan = json.loads(path.read_text())
    change(plan)
    path.write_text(json.dumps(plan))


@pytest.mark.parametrize(("bits", "tolerance"), [(32, 0.0), (16, 3e-3), (8, 5e-2)])
def test_saved_and_loaded_it_gives_the_same(bits, tolerance, tmp_path: Path) -> None:
    pair = made.make_split(
        made.DECODER, side="pair", groups=(("de>en", "fr>en"), ("en>de",)), private_shares=(0.25, 0.75)
    )
    model = made.make_split_model(made.make_split(), pair)
    save(model, tmp_path, bits=bits)
    again = load_any(tmp_path)
    assert again.sharing_plan == model.sharing_plan
    first, second = (states(m, [0, 1, 2, 3]) for m in (model, again))
    assert float((first - second).norm() / first.norm()) <= tolerance
    assert (
        again.decoder.layers[0].feed_forward.table.tolist()
        == model.decoder.layers[0].feed_forward.table.tolist()
    )
    if bits == 32:
        assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())


def test_widths_and_table_are_the_plan_s() -> None:
    model = made.make_split_model(
        made.make_split(groups=(("ru",), ("en", "de")), private_shares=(0.75, 0.25))
    )
    split = model.get_submodule(made.ENCODER)
    assert isinstance(split, SplitFeedForward)
    assert split.shared.expand.out_features == 24
    assert [branch.expand.out_features for branch in split.private] == [18, 6]
    assert split.table.tolist() == [1, 1, -2, 0, -1]  # de, en, fr without a group, ru, no language
    assert target_languages(model) == made.LANGUAGES


def test_every_language_takes_the_branch_of_its_group() -> None:
    model = made.make_split_model()
    one = [SOUNDS[0]]
    by_language = [states(model, [n], one) for n in range(4)]
    assert torch.equal(by_language[0], by_language[1])
    assert torch.equal(by_language[2], by_language[3])
    assert not torch.allclose(by_language[0], by_language[2], atol=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan["splits"][0]["groups"].reverse(),
        lambda plan: plan["splits"][0].update(groups=[["de", "fr"], ["en", "ru"]]),
        lambda plan: plan["splits"][0].update(groups=[["de"], ["fr", "ru"]]),
        lambda plan: plan["splits"][0].update(module=made.EARLY),
    ],
)
def test_another_mapping_than_that_of_the_weights_is_an_error(change, tmp_path: Path) -> None:
    save(made.make_split_model(), tmp_path)
    rewrite(tmp_path / FILE, change)
    with pytest.raises(SprachbundError, match=r"other branches than the weights were made for"):
        load(tmp_path)


def test_what_does_not_touch_the_mapping_may_be_edited(tmp_path: Path) -> None:
    model = made.make_split_model()
    save(model, tmp_path)
    rewrite(tmp_path / FILE, lambda plan: plan.update(notes=["looked at by a person"]))
    rewrite(tmp_path / FILE, lambda plan: plan["splits"][0]["groups"][0].reverse())
    torch.testing.assert_close(states(load(tmp_path), [0, 1, 2, 3]), states(model, [0, 1, 2, 3]))


def test_a_plan_that_was_lost_or_lies_beside_other_weights_is_an_error(tmp_path: Path) -> None:
    save(made.make_split_model(), tmp_path / "split")
    plan = (tmp_path / "split" / FILE).read_text()
    (tmp_path / "split" / FILE).unlink()
    with pytest.raises(SprachbundError, match=r"no sharing_plan.json, but its weights are split"):
        load(tmp_path / "split")
    save(made.make_model(), tmp_path / "whole")
    (tmp_path / "whole" / FILE).write_text(plan)
    with pytest.raises(SprachbundError, match=r"beside weights that are not split"):
        load(tmp_path / "whole")
    save(made.make_model(), tmp_path / "split")  # a model saved over a split one leaves no plan behind
    assert load(tmp_path / "split").sharing_plan is None


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            made.make_split("encoder.layers.9.feed_forward_out"),
            r"no module 'encoder.layers.9.*encoder.layers.1",
        ),
        (made.make_split("encoder.layers.1.attention"), r"MultiHeadAttention is no feed-forward"),
        (made.make_split(groups=(("de",), ("xx",))), r"'xx' in encoder.layers.1.*knows de, en, fr, ru"),
        (made.make_split(side="target"), r"only the decoder knows the language written"),
        (made.make_split(made.DECODER, side="pair", groups=(("de>xx",),)), r"'xx' in decoder"),
        (made.make_split(shared_ratio=0.99), r"inner width of 48, too little for 2"),
    ],
)
def test_a_plan_that_does_not_fit_says_where_and_changes_nothing(split, message) -> None:
    model = made.make_model()
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(SprachbundError, match=message):
        split_feed_forwards(model, made.make_plan(made.make_split(made.EARLY), split))
    assert [name for name, _ in model.named_modules()] == before
    assert model.sharing_plan is None


def test_a_module_is_split_once() -> None:
    model = made.make_split_model()
    with pytest.raises(SprachbundError, match="split already"):
        split_feed_forwards(model, made.make_plan())


def test_the_digest_is_of_the_mapping_alone() -> None:
    one, other = made.make_split(), made.make_split(start="svd", seed=7, shared_ratio=0.25)
    assert mapping_digest(made.make_plan(one)) == mapping_digest(made.make_plan(other))
    both = [made.make_split(), made.make_split(made.EARLY)]
    assert mapping_digest(made.make_plan(*both)) == mapping_digest(made.make_plan(*both[::-1]))


def whisper_plan(**changes: object) -> SharingPlan:
    return made.make_plan(
        made.make_split("encoder.layers.0.feed_forward", groups=(("de", "en"), ("fr", "es")), **changes),
        made.make_split("decoder.layers.1.feed_forward", side="target", groups=(("en",), ("de", "fr", "es"))),
    )


def test_a_split_whisper_is_saved_and_loaded_in_our_own_layout(tmp_path: Path) -> None:
    make_directory(tmp_path / "whole")
    model = whisper.load(tmp_path / "whole")
    split_feed_forwards(model, whisper_plan())
    torch.manual_seed(0)
    for part in model.modules():
        if isinstance(part, SplitFeedForward):
            for parameter in part.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
    whisper.save(model, tmp_path / "split")
    again = load_any(tmp_path / "split")
    sounds = [np.zeros(16_000, np.float32), np.ones(8000, np.float32)]
    numbers = [model.source_languages.index(tag) for tag in ("de", "es")]
    torch.testing.assert_close(states(again, numbers, sounds), states(model, numbers, sounds), atol=0, rtol=0)
    tokens, targets = (
        torch.tensor([[1, 2, 3], [4, 5, 6]]),
        [Target(language="en", source=s) for s in ("de", "es")],
    )
    with torch.no_grad():
        features = model.features(sounds)
        given = replace(features, source_language=torch.tensor(numbers))
        torch.testing.assert_close(
            again(given, tokens, targets), model(given, tokens, targets), atol=0, rtol=0
        )
        with pytest.raises(ValueError, match="say what each row's target is"):
            model(given, tokens)
    config = json.loads((tmp_path / "split" / "config.json").read_text())
    assert config["family"] == "whisper"
    with pytest.raises((ValueError, KeyError), match="sprachbund-whisper"):
        AutoConfig.from_pretrained(tmp_path / "split")
    rewrite(tmp_path / "split" / FILE, lambda plan: plan["splits"][1]["groups"].reverse())
    with pytest.raises(SprachbundError, match="other branches"):
        load_any(tmp_path / "split")
    assert TINY.encoder_feed_forward_width == 48  # the shared branch is half of it
    assert again.encoder.layers[0].feed_forward.shared.expand.out_features == 24


def test_a_split_whisper_finds_out_the_language_like_any_family(tmp_path: Path) -> None:
    make_directory(tmp_path)
    model = whisper.load(tmp_path)
    groups = (tuple(model.source_languages[::2]), tuple(model.source_languages[1::2]))
    split_feed_forwards(
        model, made.make_plan(made.make_split("encoder.layers.0.feed_forward", groups=groups))
    )
    torch.manual_seed(0)
    for parameter in model.encoder.layers[0].feed_forward.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    numbers = range(len(model.source_languages))
    with torch.no_grad():
        features = model.features(SOUNDS)
        under = [
            model.encode(replace(features, source_language=torch.full((len(SOUNDS),), number)))
            for number in numbers
        ]
        own = torch.stack([model.language_log_probs(m)[:, n] for n, m in zip(numbers, under, strict=True)], 1)
        result = model.encode(features)
    assert result.source_language.tolist() == own.argmax(1).tolist()
    for row, number in enumerate(result.source_language.tolist()):
        torch.testing.assert_close(result.states[row], under[number].states[row], atol=1e-5, rtol=1e-4)
