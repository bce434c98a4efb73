"""The language of every row reaches its branch: in training, in a batch, and where it has to be found out."""

from dataclasses import replace

import pytest
import torch

from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from tests.models import split_support as made
from tests.models.split_support import DECODER, EARLY, ENCODER, LANGUAGES

SOUNDS = made.make_sounds(8)


@pytest.fixture(scope="module")
def model():
    # Two modules that are split differently: three kinds of languages, {de}, {en} and {fr, ru}.
    early = made.make_split(EARLY, groups=(("de",), ("en", "fr", "ru")))
    return made.level_languages(made.make_split_model(made.make_split(), early))


def encode(model, sounds, languages=None):
    numbers = None if languages is None else torch.tensor(languages)
    with torch.no_grad():
        return model.encode(replace(model.features(sounds), source_language=numbers))


def test_eight_utterances_of_mixed_languages_are_the_same_alone(model) -> None:
    languages = [0, 1, 2, 3, 3, 2, 0, 1]
    together = encode(model, SOUNDS, languages)
    assert together.source_language.tolist() == languages
    for i, language in enumerate(languages):
        alone = encode(model, [SOUNDS[i]], [language])
        frames = int(alone.num_frames[0])
        torch.testing.assert_close(together.states[i, :frames], alone.states[0], atol=1e-5, rtol=1e-4)


def test_an_unknown_language_is_the_likeliest_under_its_own_branch(model) -> None:
    under_each = [encode(model, SOUNDS, [n] * 8) for n in range(4)]
    with torch.no_grad():
        own = torch.stack([model.language_log_probs(m)[:, n] for n, m in enumerate(under_each)], dim=1)
    result = encode(model, SOUNDS)
    assert result.source_language.tolist() == own.argmax(1).tolist()
    assert len(set(result.source_language.tolist())) > 1  # or the test shows nothing
    torch.testing.assert_close(model.language_log_probs(result), own.log_softmax(-1), atol=1e-4, rtol=1e-4)
    for i, language in enumerate(result.source_language.tolist()):
        frames = int(result.num_frames[i])
        expected = under_each[language].states[i, :frames]
        torch.testing.assert_close(result.states[i, :frames], expected, atol=1e-5, rtol=1e-4)


def test_known_and_unknown_languages_share_a_batch(model) -> None:
    languages = [-1, 2, -1, 0, 3, -1, -1, 1]
    together = encode(model, SOUNDS, languages)
    for i, language in enumerate(languages):
        alone = encode(model, [SOUNDS[i]], [language])
        frames = int(alone.num_frames[0])
        torch.testing.assert_close(together.states[i, :frames], alone.states[0], atol=1e-5, rtol=1e-4)
        both = (model.language_log_probs(m) for m in (together, alone))
        torch.testing.assert_close(
            *(rows[j] for rows, j in zip(both, (i, 0), strict=True)), atol=1e-4, rtol=1e-4
        )
        assert together.source_language[i] == alone.source_language[0]


def test_finding_out_costs_one_pass_of_the_split_layers_for_every_kind(model) -> None:
    seen: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0]))
        for layer in model.encoder.layers
    ]
    encode(model, SOUNDS)
    encode(model, SOUNDS, [0] * 8)
    for hook in hooks:
        hook.remove()
    assert seen == [8, 24, 8, 8]


def test_a_language_without_a_group_is_refused_by_name_and_never_assumed() -> None:
    model = made.make_split_model(made.make_split(groups=(("de", "en"), ("fr",))))
    with pytest.raises(
        SprachbundError, match=r"no group for 'ru' in encoder.layers.1.*knows de, en, fr; add it"
    ):
        encode(model, SOUNDS[:1], [3])
    with torch.no_grad():
        model.language_head.bias[3] += 100.0
    assert 3 not in encode(model, SOUNDS).source_language.tolist()
    with pytest.raises(SprachbundError, match="no group for 'ru'"):
        model.loss(made.make_batch(model, [0, 3], ["de"]))


def test_modules_that_have_no_language_in_common_need_one_named() -> None:
    splits = [made.make_split(groups=(("de",),)), made.make_split(EARLY, groups=(("fr",), ("en",)))]
    model = made.make_split_model(*splits)
    with pytest.raises(SprachbundError, match="no language has a group in every split module"):
        encode(model, SOUNDS[:1])


def test_a_model_that_cannot_tell_the_language_asks_for_it() -> None:
    model = made.make_split_model()
    with torch.no_grad():
        model.language_head.weight.zero_()
        model.language_head.bias.zero_()
    with pytest.raises(SprachbundError, match="cannot identify it; name the source language"):
        encode(model, SOUNDS[:2])
    assert encode(model, SOUNDS[:2], [0, 3]).source_language.tolist() == [0, 3]


def gradients(model, batch) -> dict[str, torch.Tensor | None]:
    model.zero_grad(set_to_none=True)
    model.loss(batch).total.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def reached(result, prefix: str) -> bool:
    return any(g is not None and bool(g.any()) for name, g in result.items() if name.startswith(prefix))


@pytest.mark.parametrize(
    ("sources", "present"), [([0, 1], [0]), ([2, 3], [1]), ([0, 3], [0, 1]), ([-1, -1], [])]
)
def test_training_moves_the_branches_of_the_languages_in_the_batch(sources, present) -> None:
    model = made.make_split_model()
    result = gradients(model, made.make_batch(model, sources, ["de", "ru"]))
    assert reached(result, f"{ENCODER}.shared")
    assert [g for g in (0, 1) if reached(result, f"{ENCODER}.private.{g}.")] == present


def test_speechless_utterances_go_through_the_shared_branch_alone() -> None:
    model = made.make_split_model()
    batch = made.make_batch(model, [0, -1], ["de"])
    with torch.no_grad():
        before = model.loss(batch).attention
        model.get_submodule(f"{ENCODER}.private.1").contract.weight.mul_(3.0)
        assert torch.equal(model.loss(batch).attention, before)
        model.get_submodule(f"{ENCODER}.shared").contract.weight.mul_(3.0)
        assert not torch.equal(model.loss(batch).attention, before)


@pytest.mark.parametrize(
    "split",
    [
        made.make_split(DECODER, side="target"),
        made.make_split(DECODER, side="source"),
        made.make_split(
            DECODER,
            side="pair",
            groups=(("de>de", "en>ru", "fr>fr"), ("en>de", "fr>de"), ("de>ru", "de>fr", "en>fr", "fr>ru")),
        ),
    ],
    ids=["target", "source", "pair"],
)
def test_the_loss_of_a_split_decoder_is_that_of_its_steps(split) -> None:
    model = made.make_split_model(made.make_split(), split)
    names, sources = ["de", "fr", "ru"], [0, 2, 1]
    batch = made.make_batch(model, sources, names)
    with torch.no_grad():
        expected = 0.0
        memory = encode_batch(model, batch)
        rows = [Target(language=t, source=LANGUAGES[s]) for s in sources for t in names]
        cache = model.start(memory, rows_per_memory=3, capacity=8, targets=rows)
        given = torch.cat([batch.target_language[:, None], batch.targets[:, :-1]], 1)
        log_probs = torch.cat([model.step(given[:, i : i + 1], cache) for i in range(6)], 1).log_softmax(-1)
        expected = -0.9 * log_probs.gather(2, batch.targets[..., None]).sum() - 0.1 * log_probs.mean(-1).sum()
        torch.testing.assert_close(model.loss(batch).attention, expected, rtol=1e-4, atol=1e-3)
        wrong = [replace(row, language="de") for row in rows]
        other = model.step(given[:, :1], model.start(memory, rows_per_memory=3, targets=wrong)).log_softmax(
            -1
        )
        assert torch.allclose(other, log_probs[:, :1], atol=1e-3) == (split.side == "source")


def encode_batch(model, batch):
    from sprachbund.models.base import Features

    return model.encode(
        Features(values=batch.features, num_frames=batch.num_frames, source_language=batch.source_language)
    )


def test_rows_that_do_not_count_reach_no_branch_of_the_decoder() -> None:
    model = made.make_split_model(made.make_split(DECODER, side="target"))
    batch = made.make_batch(model, [0], ["de", "ru"])
    batch = replace(
        batch,
        num_targets=torch.tensor([6, 0]),
        target_language=torch.tensor([batch.target_language[0], 0]),
    )
    result = gradients(model, batch)
    assert reached(result, f"{DECODER}.private.0.")
    assert not reached(result, f"{DECODER}.private.1.")


def test_what_a_split_decoder_is_not_told_is_an_error() -> None:
    model = made.make_split_model(made.make_split(DECODER, side="pair", groups=(("de>en",), ("fr>en",))))
    with torch.no_grad():
        memory = model.encode(model.features(SOUNDS[:1]))
        with pytest.raises(ValueError, match="say what each row's target is"):
            model.start(memory)
        with pytest.raises(SprachbundError, match="name the source language"):
            model.start(memory, targets=[Target(language="en")])
        with pytest.raises(SprachbundError, match=r"no group for 'ru>en'.*de>en, fr>en"):
            model.start(memory, targets=[Target(language="en", source="ru")])
