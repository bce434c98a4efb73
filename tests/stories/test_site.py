"""The reference of the documentation site comes from the code, and its pages load nothing from other hosts."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from sprachbund.cli import VERBS

pytest.importorskip("mkdocs", reason="mkdocs is not installed; `make site` installs it")
docs_hooks = pytest.importorskip("scripts.docs_hooks")


def test_every_verb_has_a_section_with_its_options() -> None:
    text = docs_hooks.on_page_markdown("before\n<!-- generated: commands -->\nafter\n")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    for verb in VERBS:
        assert f"\n### sprachbund {verb}\n" in text
    section = text.partition("\n### sprachbund translate\n")[2].partition("\n### ")[0]
    assert "| `--to LANG,…` |" in section


def test_keys_of_recipes_have_type_default_and_meaning() -> None:
    marker = "<!-- generated: options sprachbund.training.recipe.TranslatorRecipe -->"
    text = docs_hooks.on_page_markdown(marker)
    assert "| `vocabulary_size` | `int` | `2000` |" in text
    assert "| `dev` | `tuple[DataPart, ...]` | required |" in text
    training = text.partition("\n### training\n")[2].partition("\n### ")[0]
    rows = [line.split(" | ") for line in training.splitlines() if line.startswith("| `")]
    assert {"| `steps`", "| `learning_rate`"} <= {row[0] for row in rows}
    assert all(row[-1].strip(" |") for row in rows)  # every key has a meaning


def test_every_class_that_a_file_is_read_into_is_listed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "configuration.md").read_text("utf-8")
    listed = set(re.findall(r"<!-- generated: options \S+\.(\w+) -->", page))
    assert listed >= {
        *("TranslatorRecipe", "UnitTranslatorRecipe", "DraftRecipe"),
        *("GradientSharingRecipe", "DualScaleRecipe", "CodeSwitchRecipe"),
        *("DiscreteUnitsRecipe", "EncoderTransferRecipe"),
    }
    keys = docs_hooks.on_page_markdown(page)
    for key in ("unit_pieces", "prune_only_layers", "cache_states", "text_llm", "pretrained"):
        assert f"`{key}`" in keys or f"### {key}" in keys


def test_every_key_of_the_configuration_has_a_meaning_and_can_be_set() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "configuration.md").read_text("utf-8")
    rows = [
        [cell.strip(" |") for cell in line.split(" | ")]
        for line in docs_hooks.on_page_markdown(page).splitlines()
        if line.startswith("| `")
    ]
    assert len(rows) > 500
    assert [row[0] for row in rows if not row[-1]] == []
    # Computed properties are no keys.
    computed = {"trained_arms", "new_decoder_layers", "has_decoder", "writes_by_frames", "wyoming_address"}
    assert not computed & {row[0].strip("`") for row in rows}
    assert ["`shares`", "`{}`"] in [[row[0], row[2]] for row in rows]


def test_unknown_markers_are_refused() -> None:
    with pytest.raises(Exception, match="unknown marker"):
        docs_hooks.on_page_markdown("<!-- generated: nothing -->")


@pytest.mark.parametrize(
    "element",
    [
        '<script src="https://unpkg.com/x"></script>',
        '<link rel="stylesheet" href="//fonts.googleapis.com/css">',
        "<img alt=x src='http://example.org/a.png'>",
    ],
)
def test_a_page_that_loads_from_another_host_is_refused(element: str) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_path="x.md"))
    plain = (
        '<a href="https://example.org">x</a><img src="images/a.png"><link rel="canonical" href="https://x/">'
    )
    assert docs_hooks.on_post_page(plain, page=page) == plain
    with pytest.raises(Exception, match=r"x\.md makes browsers contact another host"):
        docs_hooks.on_post_page(plain + element, page=page)
