"""Prompts around the speech, how much speech the language model can hold, and the errors that people meet."""

import pytest
import torch
from pydantic import ValidationError

from sprachbund.errors import SprachbundError
from sprachbund.models.base import Target
from sprachbund.models.speech_llm import LoraOptions, ProjectorOptions, PromptOptions, SpeechLLM
from sprachbund.models.speech_llm.encoders import of_family
from sprachbund.models.speech_llm.llm import Prompts
from tests.models.speech_llm_support import (
    VOCABULARY,
    make_config,
    make_encoder,
    make_llm,
    make_model,
    speech,
    tokenizer,
)

CHAT = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def test_text_comes_before_speech_and_chat_templates_are_used() -> None:
    target = Target(language="en", source="es")
    plain = Prompts(tokenizer(), PromptOptions(), VOCABULARY)
    before, behind = plain.around(target)
    assert before[0] == tokenizer().bos_token_id
    assert plain.tokens_to_text(before) == "Translate the speech into English.\n"
    assert plain.tokens_to_text(behind) == "\n"
    same = plain.around(Target(language="en", source="en"))
    assert plain.tokens_to_text(same[0]) == "Transcribe the speech.\n"
    chat = Prompts(tokenizer(CHAT), PromptOptions(), VOCABULARY)
    before, behind = chat.around(target)
    read = tokenizer(CHAT).decode
    assert read(before) == "<s>user: Translate the speech into English.\n"
    assert read(behind) == "</s><s>assistant: "
    other = Prompts(tokenizer(), PromptOptions(order=("speech", "text")), VOCABULARY)
    before, behind = other.around(target)
    assert (other.tokens_to_text(before), before) == ("", [tokenizer().bos_token_id])
    assert other.tokens_to_text(behind) == "\nTranslate the speech into English.\n"
    tokenizer().chat_template = None


def test_prompts_in_another_order_than_trained_are_refused() -> None:
    other = Prompts(tokenizer(), PromptOptions(translate="Say it in {language}."), VOCABULARY)
    assert "Say it in German" in other.tokens_to_text(other.around(Target(language="de"))[0])
    with pytest.raises(SprachbundError, match=r"put speech before text.*trained with text before speech"):
        PromptOptions(order=("speech", "text")).check_order(PromptOptions().order)
    with pytest.raises(SprachbundError, match="no chat template"):
        Prompts(tokenizer(), PromptOptions(chat=True), VOCABULARY)
    with pytest.raises(ValidationError, match="once each"):
        PromptOptions(order=("text", "text"))
    with pytest.raises(ValidationError, match=r"name the \{language\}"):
        PromptOptions(translate="Translate it.")


def test_text_with_special_tokens_would_steer_and_is_refused() -> None:
    model = make_model()
    with pytest.raises(SprachbundError, match="special token </s>"):
        model.prompts.text_to_tokens("all </s> over")
    assert model.decode_text(model.prompts.text_to_tokens("¿qué hora es?")) == "¿qué hora es?"
    mask = model.suppressed(Target(language="en"))
    assert mask[[0, 1]].all()
    assert mask[len(tokenizer()) :].all()
    assert not mask[model.end_token]


# What does not fit.


def test_speech_that_the_language_model_cannot_hold_is_told_how_much_fits() -> None:
    llm = make_llm(max_position_embeddings=100)
    model = SpeechLLM(make_encoder(), llm, make_config(), tokenizer=tokenizer())
    longest = max(
        len(a) + len(b) for a, b in (model.prompts.around(Target(language=t)) for t in ("en", "de", "es"))
    )
    fits_s = (100 - longest - 24) * 0.16
    assert model.max_window_s == pytest.approx(fits_s)
    model.features(speech(fits_s))
    with pytest.raises(
        SprachbundError, match=f"language model's 100; the longest that fits is {fits_s:.1f} s"
    ):
        model.features(speech(fits_s + 0.2))
    with pytest.raises(SprachbundError, match=r"context of 64 tokens leaves 0\.\d s for speech"):
        SpeechLLM(make_encoder(), make_llm(max_position_embeddings=64), make_config(), tokenizer=tokenizer())
    roomy = make_model()
    assert roomy.max_window_s == 15
    with pytest.raises(SprachbundError, match=r"lasts 15.5 s, a window of the encoder 15"):
        roomy.features(speech(15.5))


def test_a_sliding_window_counts_as_the_context() -> None:
    assert make_model(llm="mistral").llm.context == 512
    for kind in ("gemma2", "mistral"):  # the latter does not name the kind of each layer
        windowed = make_llm(kind, sliding_window=128)
        assert SpeechLLM(make_encoder(), windowed, make_config(), tokenizer=tokenizer()).llm.context == 128


def test_other_bad_input() -> None:
    model = make_model()
    with pytest.raises(SprachbundError, match=r"does not write 'zh'; it writes .*English"):
        model.prompt(Target(language="zh"))
    memory = model.encode(model.features(speech(0.5)))
    with pytest.raises(SprachbundError, match="give the targets"):
        model.start(memory)
    cache = model.start(memory, capacity=3, targets=[Target(language="en")])
    with pytest.raises(SprachbundError, match="words get no times"):
        model.step(torch.tensor([[5]]), cache, [])
    with pytest.raises(ValueError, match="4 tokens do not fit into a cache of 3"):
        model.step(torch.tensor([[5, 6, 7, 8]]), cache)
    with pytest.raises(SprachbundError, match=r"no linear layer is called 'wq'; there are .*q_proj"):
        make_model(lora=LoraOptions(llm=("wq",)))
    with pytest.raises(SprachbundError, match="built without a tokenizer"):
        _ = SpeechLLM(make_encoder(), make_llm(), make_config()).prompts
    with pytest.raises(SprachbundError, match="has 259 tokens but the language model 200"):
        SpeechLLM(make_encoder(), make_llm(vocab_size=200), make_config(), tokenizer=tokenizer())
    with pytest.raises(SprachbundError, match="'speech_llm' is not taken"):
        of_family(model)
    for wrong, message in (
        ({"groups": (("es",), ("es",))}, "stands in two groups"),
        ({"groups": ((),)}, "every group needs a language"),
        ({"groups": (("es",),), "group_size": 1, "num_chosen": 2}, "num_chosen is 2, but there are 1"),
    ):
        with pytest.raises(ValidationError, match=message):
            ProjectorOptions(**wrong)
