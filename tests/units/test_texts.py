"""Text to text by a model that reads both."""

import itertools

import pytest
import torch

from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.texts import translate_texts
from sprachbund.errors import SprachbundError
from sprachbund.models.tokens.conformer import TokenConformer
from tests.decoding.tiny_family import TinyFamily
from tests.units.translators import Spoken, model_of, speak, talkative


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Spoken:
    return speak(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def model(made: Spoken) -> TokenConformer:
    return talkative(model_of(made.units, head="ctc_attention"))


def test_texts_come_back_in_order_whatever_the_batches(model: TokenConformer) -> None:
    texts = ["abc", "fade", "  ", "bad cab", "deaf"]
    result = [
        list(translate_texts(model, texts, ["fr"], "de", DecodingOptions(beam_size=3, batch_size=size)))
        for size in (1, 2, 8)
    ]
    for a, b in itertools.pairwise(result):
        assert [row[0].text for row in a] == [row[0].text for row in b]
        assert [row[0].log_probability for row in a] == pytest.approx(
            [row[0].log_probability for row in b], abs=1e-4
        )
    assert result[0][2][0].text == ""
    assert any(row[0].text for row in result[0])
    assert {(row[0].source, row[0].target) for row in result[0]} == {("de", "fr")}


def test_the_language_is_found_out_by_the_model(model: TokenConformer) -> None:
    with torch.no_grad():
        model.language_head.bias.copy_(torch.tensor([0.0, 50.0]))
    assert next(translate_texts(model, ["abc"], ["fr"]))[0].source == "en"


def test_what_cannot_be_is_said_at_once(model: TokenConformer) -> None:
    with pytest.raises(SprachbundError, match="tiny turns speech into text, and cannot translate text"):
        translate_texts(TinyFamily(), ["abc"], ["de"])
    with pytest.raises(SprachbundError, match="text is not transcribed"):
        translate_texts(model, ["abc"], ["transcribe"])
    with pytest.raises(SprachbundError, match="it"):
        translate_texts(model, ["abc"], ["it"])


def test_nothing_gives_nothing(model: TokenConformer) -> None:
    assert list(translate_texts(model, [], ["fr"])) == []
