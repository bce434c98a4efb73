"""Causal language models beside transformers: logits in whole rows and step by step, with prefixes of any length."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import transformers

from sprachbund.errors import SprachbundError
from sprachbund.models.causal_lm import CausalConfig, CausalKind, ChatTemplate, fill, read_shards
from sprachbund.nn.causal_lm import CausalLM

SIZES = {
    "vocab_size": 60,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, {}) for kind in get_args(CausalKind)},
    "llama, tied, wide heads, biases": (
        "llama",
        {"tie_word_embeddings": True, "head_dim": 10, "attention_bias": True, "mlp_bias": True},
    ),
    "llama 3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "granite, multiplied": (
        "granite",
        {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.0078125,
            "logits_scaling": 8.0,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3, biases": ("qwen3", {"attention_bias": True, "head_dim": 8}),
}


def made(name: str, directory: Path, **options: Any) -> tuple[Any, CausalLM]:
    """A random model of transformers, and ours of its files."""
    kind, changes = VARIANTS[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **changes})
    theirs: Any = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(directory, **options)
    return theirs, ours(directory)


def ours(directory: Path) -> CausalLM:
    config = CausalConfig.model_validate(json.loads((directory / "config.json").read_text()))
    with torch.device("meta"):
        model = CausalLM(config.shape)
    weights = {name.removeprefix("model."): w for name, w in read_shards(directory).items()}
    fill(model, weights, directory)
    return model.eval()


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs, model = made(name, tmp_path)
    tokens = torch.randint(60, (2, 90))
    with torch.no_grad():
        expected = theirs(tokens).logits
        whole = model(model.embed(tokens))
        torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-4)
        # A product of two rows may be summed in another order than one of 90.
        some = model(model.embed(tokens), torch.tensor([3, 89]))
        torch.testing.assert_close(some, whole[:, [3, 89]], rtol=1e-5, atol=1e-5)
        # Prefixes of 40 and 7 positions, then a token, then several, two rows of each.
        lengths = (40, 7)
        prefixes = [model.embed(row[:n]) for row, n in zip(tokens, lengths, strict=True)]
        cache = model.start(prefixes, capacity=30, num_memories=2, copies=2)
        assert cache.capacity == 30
        for begin, count in ((0, 1), (1, 6), (7, 1)):
            given = torch.stack(
                [row[n + begin : n + begin + count] for row, n in zip(tokens, lengths, strict=True)]
            )
            logits = model.step(given.repeat_interleave(2, dim=0), cache)
            for row, n in enumerate(lengths):
                wanted = expected[row, n + begin : n + begin + count]
                torch.testing.assert_close(logits[2 * row], wanted, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(logits[2 * row + 1], wanted, rtol=1e-4, atol=1e-4)


def test_shards_are_read_and_a_missing_one_is_reported(tmp_path: Path) -> None:
    theirs, model = made("llama", tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    tokens = torch.randint(60, (1, 9))
    with torch.no_grad():
        torch.testing.assert_close(model(model.embed(tokens)), theirs(tokens).logits, rtol=1e-4, atol=1e-4)
    shards[1].unlink()
    with pytest.raises(SprachbundError, match=r"of \d shards"):
        read_shards(tmp_path)


def test_a_model_that_does_not_fit_is_told_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made("llama", tmp_path)
    monkeypatch.setattr("sprachbund.models.hub.available_memory", lambda: 10_000)
    monkeypatch.setattr("sprachbund.models.causal_lm.load_tensors", lambda path: pytest.fail("it was read"))
    with pytest.raises(SprachbundError, match=r"need 0\.0 GB of memory and 0\.0 GB are free"):
        read_shards(tmp_path)


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    theirs, _ = made("qwen3", tmp_path)
    theirs.to(torch.bfloat16).save_pretrained(tmp_path)
    model = ours(tmp_path)
    assert model.dtype == torch.bfloat16
    tokens = torch.randint(60, (1, 9))
    with torch.no_grad():
        difference = model(model.embed(tokens)).float() - theirs(tokens).logits.float()
    assert float(difference.abs().max()) < 0.1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_key_value_heads": 3}, "divide"),
        ({"model_type": "gpt2"}, "model_type"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_what_is_not_built_is_refused_by_its_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CausalConfig.model_validate({"model_type": "llama", **SIZES, **changes})


def test_the_chat_template_is_rendered_as_by_transformers(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    template = (
        "{{ bos_token }}{% for m in messages %}\n  <{{ m['role'] }}>{{ m['content'] | trim }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0}, unk_token="<s>")),
        bos_token="<s>",
        chat_template=template,
    )
    tokenizer.save_pretrained(tmp_path)
    talk = [{"role": "system", "content": " be short "}, {"role": "user", "content": "<s> hello"}]
    expected = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    result = ChatTemplate.read(tmp_path)
    assert result is not None
    assert result.render(talk) == expected


def test_a_hostile_template_is_refused_in_one_line() -> None:
    for source in (
        "{{ ''.__class__.__mro__ }}{% if",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no') }}",
    ):
        with pytest.raises(SprachbundError, match="chat template") as caught:
            ChatTemplate(source, {}, "template").render([{"role": "user", "content": "x"}])
        assert len(str(caught.value).splitlines()) == 1
    leak = ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}", {}, "template")
    with pytest.raises(SprachbundError, match="chat template"):
        leak.render([])
