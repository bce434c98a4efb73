"""The small network: it is what it was when it was saved, reads each text by itself, and is better than the rule."""

import json
from pathlib import Path

import pytest
import torch

from sprachbund.errors import SprachbundError
from sprachbund.models.punctuation import BUNDLED, RULE, load_punctuator
from sprachbund.models.punctuation.network import (
    PunctuationNetwork,
    PunctuationShape,
    load,
    save,
    word_features,
)
from sprachbund.text.punctuation import LANGUAGES, Punctuator, read_marked, restore

SHAPE = PunctuationShape(languages=("de", "en"), buckets=64, embedding=8, width=12)
TEXTS = [["guten", "tag"], ["wie", "geht", "es", "dir", "heute"], ["gut"]]
# Written for this test, so that no training text has them.
WRITTEN = {
    "en": "The kettle is on the stove. Would you like tea, or is it too late? We can also wait until my sister comes.",
    "de": "Der Kessel steht auf dem Herd. Möchtest du Tee, oder ist es zu spät? Wir können warten, bis Besuch kommt.",
    "es": "La tetera está en la cocina. ¿Quieres té, o es demasiado tarde? Podemos esperar hasta que venga mi hermana.",
    "fr": "La bouilloire est sur le feu. Voulez-vous du thé? Nous pouvons attendre, si vous préférez.",
    "it": "La pentola è sul fuoco. Vuoi del tè, o è troppo tardi? Possiamo aspettare, se preferisci.",
    "ru": "Чайник стоит на плите. Ты хочешь чаю, или уже поздно? Мы можем подождать, если хочешь.",
}


def network() -> PunctuationNetwork:
    torch.manual_seed(0)
    made = PunctuationNetwork(SHAPE, "made").eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3.0)  # so that labels differ
    return made


def test_texts_of_a_batch_have_the_logits_that_they_have_alone():
    made = network()
    inputs = [made.inputs(words, "de") for words in TEXTS]
    shifts = [0, len(inputs[0][0]), len(inputs[0][0]) + len(inputs[1][0])]
    offsets = torch.cat([own[1] + shift for own, shift in zip(inputs, shifts, strict=True)])
    lengths = torch.tensor([len(words) for words in TEXTS])
    language = torch.zeros(len(TEXTS), dtype=torch.long)
    together = made(torch.cat([own[0] for own in inputs]), offsets, language, lengths)
    for row, own in enumerate(inputs):
        alone = made(*own, language[:1], lengths[row : row + 1])
        for whole, part in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[row, : lengths[row]], part[0], atol=1e-5, rtol=1e-5)


def test_a_word_has_its_beginnings_and_ends_and_a_row_for_its_language():
    def parts(word: str, language: str) -> list[int]:
        return list(word_features(word, language, 2**20))

    assert len(parts("verantwortung", "de")) == 11
    assert parts("Haltung", "de")[-6:] == parts("Schaltung", "de")[-6:]  # "<" and ">" mark the borders
    assert parts("die", "de")[0] != parts("die", "en")[0]
    assert parts("die", "de")[1:] == parts("die", "en")[1:]
    assert parts("1998", "de") == parts("2024", "de")
    assert parts("Hund", "de") == parts("hund", "de")


def test_what_is_saved_is_read_with_the_same_labels(tmp_path: Path):
    save(network(), tmp_path)
    first, second = load(tmp_path, "made"), load(tmp_path, "made")
    assert first.label(TEXTS, "de") == second.label(TEXTS, "de")
    for name, value in network().state_dict().items():
        error = (first.state_dict()[name] - value).abs().max()
        assert error <= value.abs().max() / 100  # 8 bits
    assert (tmp_path / "model.safetensors").stat().st_size < 64 * 8 * 4 + 20_000


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("width", 13, "shape"),
        ("languages", [], "languages"),
        ("buckets", 0, "buckets"),
        ("depth", 3, "depth"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path: Path, key: str, value: object, said: str):
    save(network(), tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    values["config"][key] = value
    path.write_text(json.dumps(values))
    with pytest.raises(SprachbundError, match=said):
        load(tmp_path, "made")


def test_an_unknown_language_and_an_unknown_punctuator_are_refused(tmp_path: Path):
    with pytest.raises(SprachbundError, match="made knows de, en, and not nl"):
        network().label([["hallo"]], "nl")
    with pytest.raises(SprachbundError, match=r"no punctuator .*missing.*bundled and rule"):
        load_punctuator(str(tmp_path / "missing"))


def test_no_words_have_no_labels():
    assert network().label([[], ["ja"]], "de")[0] == []


def errors(punctuator: Punctuator, language: str) -> int:
    """Words that are not written as they stand in the text."""
    words = read_marked(WRITTEN[language], language)
    assert words is not None
    plain = [word.text.lower() for word in words]
    written = restore(plain, punctuator.label([plain], language)[0], language)
    wanted = WRITTEN[language].replace("thé?", "thé\u00a0?").split(" ")
    return sum(one != other for one, other in zip(written, wanted, strict=True))


def test_the_punctuator_of_the_package_is_better_than_the_rule_in_every_language():
    own, rule = load_punctuator(BUNDLED), load_punctuator(RULE)
    assert own.languages == LANGUAGES
    for language in LANGUAGES:
        assert errors(own, language) < errors(rule, language), language
