"""A new Whisper with a vocabulary of its own; and the prompt that names the language wanted and nothing else."""

from pathlib import Path

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from sprachbund.errors import SprachbundError
from sprachbund.models import whisper
from sprachbund.models.base import Target
from sprachbund.models.whisper.extension import set_prompt, without_transcription
from sprachbund.research.dual_scale.options import WhisperShape
from sprachbund.research.dual_scale.recipe import fit_tokenizer, new_whisper
from tests.models.whisper_support import make_directory

TEXTS = [" eins zwei drei", " one two three", " один два три", " l'été où ça"] * 5
SHAPE = WhisperShape(
    width=32, num_heads=2, encoder_layers=1, decoder_layers=2, max_window_s=2.0, max_tokens=32
)


@pytest.fixture(scope="module")
def model() -> whisper.Whisper:
    torch.manual_seed(0)
    tokenizer = fit_tokenizer(TEXTS, ("en", "de", "ru"), 300)
    config = SHAPE.config(tokenizer.get_vocab_size(with_added_tokens=True))
    return set_prompt(new_whisper(config, tokenizer).eval(), "wanted-only", ["en", "de", "ru"])


def test_every_text_comes_back_even_of_letters_never_seen(model: whisper.Whisper) -> None:
    for text in (*TEXTS, " 中文 ñ", " 🎈"):
        assert model.decode_text(model.tokens.text_to_tokens(text)) == text
    assert len(model.tokens.text_to_tokens(" eins zwei")) < 6
    assert model.config.vocabulary_size <= 300 + 2 + 3 + 5


def test_it_is_saved_as_transformers_reads_it(model: whisper.Whisper, tmp_path: Path) -> None:
    whisper.save(model, tmp_path / "new")
    again = whisper.load(tmp_path / "new")
    theirs = WhisperForConditionalGeneration.from_pretrained(tmp_path / "new").eval()
    features, row = torch.randn(1, 200, 80), torch.tensor([again.prompt(Target(language="de", source="en"))])
    with torch.no_grad():
        wanted = theirs(input_features=features.transpose(1, 2), decoder_input_ids=row).logits
        from sprachbund.models.base import Features

        result = again(Features(values=features, num_frames=torch.tensor([200])), row)
    torch.testing.assert_close(result, wanted, atol=1e-5, rtol=1e-4)
    assert again.pairs() == model.pairs()


def test_the_prompt_is_the_start_and_the_language(model: whisper.Whisper, tmp_path: Path) -> None:
    tokens = model.tokens
    for source in ("en", "ru", None):
        assert model.prompt(Target(language="de", source=source)) == [tokens.start, tokens.languages["de"]]
    make_directory(tmp_path / "published")
    published = set_prompt(whisper.load(tmp_path / "published"), "wanted-only", ["en", "de"])
    assert published.prompt(Target(language="de", source="en")) == [257, published.tokens.languages["de"]]
    # The vocabulary has timestamps, and nothing asks for them.
    assert published.tokens.timestamps
    assert published.capabilities.timestamps is None
    with pytest.raises(SprachbundError, match="trained without timestamps"):
        published.prompt(Target(language="de", source="en", timestamps=True))
    whisper.save(published, tmp_path / "saved")
    assert whisper.load(tmp_path / "saved").tasks == published.tasks
    back = set_prompt(published, "wanted", ["en", "de"])
    assert len(back.prompt(Target(language="de", source="en"))) == 4


def test_what_was_not_trained_is_not_asked(model: whisper.Whisper) -> None:
    left = without_transcription(model)
    assert left.pairs() == {(s, t) for s, t in model.pairs() if s != t}
    with pytest.raises(SprachbundError, match="does not know the pair de to de; from de it knows en, ru"):
        left.prompt(Target(language="de", source="de"))
    assert all(torch.equal(a, b) for a, b in zip(left.parameters(), model.parameters(), strict=True))
