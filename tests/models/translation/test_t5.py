"""What is of T5 alone: MADLAD-400's files as published, its vocabulary in either form, and distances."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers.models.t5.modeling_t5 import T5Attention

from sprachbund.errors import SprachbundError
from sprachbund.models import hub
from sprachbund.models.translation import load, save
from sprachbund.nn.t5 import buckets_of
from tests.models.translation.support import MADLAD_CODES, make_checkpoint, t5_pieces


@pytest.mark.parametrize("both_sides", [True, False])
@pytest.mark.parametrize(("buckets", "most"), [(32, 128), (8, 12), (32, 20)])
def test_distances_fall_into_the_buckets_of_transformers(both_sides: bool, buckets: int, most: int) -> None:
    distances = torch.arange(-300, 300).reshape(3, -1)
    theirs = T5Attention._relative_position_bucket(distances, both_sides, buckets, most)
    assert torch.equal(buckets_of(distances, buckets, most, both_sides=both_sides), theirs)


def test_a_published_file_names_its_embedding_after_the_decoder(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "model", "t5")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    weights["decoder.embed_tokens.weight"] = weights.pop("shared.weight")
    save_file(weights, path, metadata={"format": "pt"})
    result = load(tmp_path / "model").state_dict()
    assert all(torch.equal(result[name], value) for name, value in made.model.state_dict().items())


def test_rows_longer_than_the_largest_distance_equal_those_of_transformers(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "model", "t5")
    text = "der Hund läuft " * 9
    source = made.source([text], "de", "fr")
    tokens = torch.randint(3, 60, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        theirs = made.hf_model(**source, decoder_input_ids=tokens).logits
        model = made.model
        cache = model.start(
            model.encode(made.features([text], "de")), capacity=40, targets=[made.target("de", "fr")]
        )
        ours = torch.cat([model.step(tokens[:, i : i + 8], cache) for i in range(0, 40, 8)], dim=1)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_languages_are_those_of_the_vocabulary_and_tasks_are_none(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "t5").model
    assert model.target_languages == model.source_languages == ("de", "en", "fr", "ko", "zh", "zh-Hant")
    task = model.tokens.tokenizer.get_vocab()["<2translate>"]
    assert model.suppressed(None)[task]  # type: ignore[arg-type]
    with pytest.raises(SprachbundError, match="special token <2translate>; take it out"):
        model.text_features(["a <2translate> b"])


def test_tokenizer_json_is_read_as_it_stands(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "model", "t5")
    directory = Path(shutil.copytree(tmp_path / "model", tmp_path / "json"))
    (directory / "spiece.model").write_bytes(t5_pieces())
    tokenizer = transformers.T5Tokenizer.from_pretrained(directory)
    tokenizer.save_pretrained(directory)
    values = json.loads((directory / "tokenizer.json").read_text())
    values["model"]["unk_id"] = 0  # as published; transformers 5.23 writes 2, which is the end
    (directory / "tokenizer.json").write_text(json.dumps(values))
    (directory / "spiece.model").unlink()
    reference = Tokenizer.from_file(str(directory / "tokenizer.json"))
    model = load(directory)
    assert model.pairs() == made.model.pairs()
    save(model, tmp_path / "saved")
    for own in (model, load(tmp_path / "saved")):
        for text in ("der Hund läuft", "x 🎉 y", "the dog runs"):
            row = own.tokens.source(text)
            row[own.tokens.language_index] = own.tokens.language_token("fr")
            assert row == reference.encode(f"<2fr> {text}").ids
            assert "🎉" in text or own.decode_text(row) == text


def test_a_t5_without_languages_is_refused(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "model", "t5").directory
    other = t5_pieces()
    for code in MADLAD_CODES:
        other = other.replace(f"<2{code}>".encode(), f"[2{code}]".encode())
    (directory / "spiece.model").write_bytes(other)
    with pytest.raises(SprachbundError, match="has no tokens of languages such as <2fr>"):
        load(directory)


def test_weights_that_do_not_fit_into_memory_are_refused_before_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_checkpoint(tmp_path / "model", "t5").directory
    monkeypatch.setattr(hub, "available_memory", lambda: 50_000)
    with pytest.raises(
        SprachbundError, match=r"need 0\.0 GB of memory and 0\.0 GB are free; end other programs"
    ):
        load(directory)
