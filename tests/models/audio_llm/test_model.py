"""Voxtral, Granite Speech and Qwen3-ASR beside transformers: features, states, prompts, logits and tokens are equal."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sprachbund.data.batch import Batch
from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.models.audio_llm.model import AudioLLMExamples
from sprachbund.models.base import Target
from tests.models.audio_llm.support import BINS, KINDS, Checkpoint, make, noises, prompt_ids

SOUNDS = noises(2.13, 3.4, 0.7, 9.0)


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make(tmp_path_factory.mktemp("checkpoint"), request.param)


def targets(made: Checkpoint) -> list[Target]:
    """Transcription, translation where there is one, and speech in a language that nobody named."""
    asked = [Target(language="de", source="de"), Target(language="de")]
    return asked if made.kind == "qwen3_asr" else [*asked, Target(language="en", source="de")]


def reference_features(made: Checkpoint, samples: np.ndarray) -> dict[str, Tensor]:
    """What transformers' model is given for a sound."""
    if made.kind == "qwen3_asr":
        out = made.processor.feature_extractor(
            [samples], sampling_rate=16_000, padding=True, return_attention_mask=True
        )
        return {"input_features": out.input_features, "input_features_mask": out.attention_mask}
    if made.kind == "voxtral":
        import transformers

        extractor = transformers.WhisperFeatureExtractor.from_pretrained(made.directory)
        out = extractor(
            samples,
            sampling_rate=16_000,
            padding=True,
            truncation=False,
            pad_to_multiple_of=480_000,
            return_tensors="pt",
        )
        windows = out.input_features.reshape(BINS, -1, 3000).transpose(0, 1)
        return {"input_features": windows}
    # As GraniteSpeechFeatureExtractor, whose package torchaudio is not here, with transformers' own functions.
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    filters = mel_filter_bank(257, BINS, 0.0, 8000.0, 16_000, norm=None, mel_scale="htk")
    window = window_function(400, "hann")
    mel = spectrogram(
        samples, window, 400, 160, fft_length=512, power=2.0, mel_filters=filters, mel_floor=0.0
    )
    logs = np.log10(np.clip(mel.T, 1e-10, None))
    logs = np.maximum(logs, logs.max() - 8.0) / 4 + 1
    logs = logs[: len(logs) // 2 * 2]
    return {"input_features": torch.tensor(logs, dtype=torch.float32).reshape(1, -1, 2 * BINS)}


def reference_inputs(made: Checkpoint, samples: np.ndarray, target: Target) -> dict[str, Any]:
    """Features and prompt of transformers' model for a sound."""
    if made.kind == "qwen3_asr":
        context = {"prompt": target.context} if target.context else {}
        language = None if target.source is None else target.language
        return dict(
            made.processor.apply_transcription_request(
                [samples],
                language=language,
                **context,
                processor_kwargs={"audio_kwargs": {"sampling_rate": 16_000}},
            )
        )
    features = reference_features(made, samples)
    with torch.no_grad():
        embeds = made.hf_model.model.get_audio_features(**features).pooler_output
    count = embeds.numel() // embeds.shape[-1]
    ids = prompt_ids(made, count, target.source, target.language)
    return {
        **features,
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
    }


def close(ours: Tensor, theirs: Tensor, atol: float = 2e-3) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=atol)


def test_features_are_those_of_its_extractor(made: Checkpoint) -> None:
    ours = made.model.features(SOUNDS)
    for row, samples in enumerate(SOUNDS):
        theirs = reference_features(made, samples)["input_features"]
        if made.kind == "voxtral":
            expected = theirs.transpose(1, 2).flatten(0, 1)
        elif made.kind == "qwen3_asr":
            expected = theirs[0].T
        else:
            expected = theirs[0]
        count = int(ours.num_frames[row])
        close(ours.values[row, :count], expected[:count], atol=1e-3)
        assert not expected[count:].any()


def test_states_and_speech_tokens_are_those_of_its_encoder(made: Checkpoint) -> None:
    """In a batch, each row as transformers has it alone."""
    with torch.no_grad():
        memory = made.model.encode(made.model.features(SOUNDS))
    assert memory.num_frames is not None
    for row, samples in enumerate(SOUNDS):
        with torch.no_grad():
            out = made.hf_model.model.get_audio_features(**reference_features(made, samples))
            alone = made.model.features([samples])
        expected = out.pooler_output.reshape(-1, made.model.llm.width)
        assert int(memory.num_frames[row]) == len(expected)
        close(memory.states[row, : len(expected)], expected)
        with torch.no_grad():
            states = made.model.encoder(alone.values, *_lengths(made, alone.num_frames))
        theirs = out.last_hidden_state.reshape(-1, states.shape[-1])
        close(states.reshape(-1, states.shape[-1])[: len(theirs)], theirs)


def _lengths(made: Checkpoint, num_frames: Tensor) -> list[Tensor]:
    return [] if made.kind == "voxtral" else [num_frames]


def test_prompts_and_logits_are_those_of_transformers(made: Checkpoint) -> None:
    tokens = torch.randint(50, 250, (1, 9), generator=torch.Generator().manual_seed(0))
    for target in targets(made):
        inputs = reference_inputs(made, SOUNDS[0], target)
        ids = inputs["input_ids"][0].tolist()
        before, behind = made.model.around(target)
        assert ids[: len(before)] == before
        assert ids[-len(behind) :] == behind
        memory = made.model.encode(made.model.features(SOUNDS[:1]))
        assert memory.num_frames is not None
        assert len(set(ids[len(before) : -len(behind)])) == 1
        assert len(ids) == len(before) + int(memory.num_frames[0]) + len(behind)
        whole = {
            **inputs,
            "input_ids": torch.cat([inputs["input_ids"], tokens], dim=1),
            "attention_mask": torch.ones(1, len(ids) + 9, dtype=torch.long),
        }
        with torch.no_grad():
            expected = made.hf_model(**whole).logits[:, -10:]
            cache = made.model.start(memory, targets=[target])
            given = torch.cat([torch.tensor([behind]), tokens], dim=1)
            ours = made.model.step(given, cache)[:, -10:].clone()
        if made.kind.startswith("granite"):
            # Its class for speech leaves out the division that its language model has.
            expected = expected / made.hf_model.config.text_config.logits_scaling
        ends = list(made.model.ends)
        expected[..., ends[0]] = expected[..., ends].amax(-1)
        close(ours, expected)


def rows(made: Checkpoint, sounds: list[np.ndarray], target: Target) -> list[tuple[int, ...]]:
    memory = made.model.encode(made.model.features(sounds))
    result = search(made.model, memory, [[target]] * len(sounds), DecodingOptions(max_tokens=14))
    return [row[0].tokens for row in result]


@pytest.mark.slow
def test_tokens_are_those_that_transformers_generates(made: Checkpoint) -> None:
    """Greedy, row by row there and in one batch here."""
    written = set()
    for target in targets(made):
        suppressed = made.model.suppressed(target)
        ends = set(made.model.ends)
        hidden = [t for t in suppressed.nonzero().flatten().tolist() if t not in ends]
        ours = rows(made, SOUNDS, target)
        for samples, tokens in zip(SOUNDS, ours, strict=True):
            inputs = reference_inputs(made, samples, target)
            out = made.hf_model.generate(
                **inputs, max_new_tokens=14, do_sample=False, suppress_tokens=hidden, eos_token_id=list(ends)
            )
            theirs = out[0, inputs["input_ids"].shape[1] :].tolist()
            assert list(tokens) == [t for t in theirs if t not in ends]
        written |= set(ours)
    assert len(written) > 4, "random weights that write the same whatever is said show nothing"


def test_the_loss_is_that_of_transformers(made: Checkpoint) -> None:
    """Two utterances, of which one is a translation where the model knows one."""
    model = made.model
    examples = AudioLLMExamples(model, ["de", "en"])
    target = "de" if made.kind == "qwen3_asr" else "en"
    texts = [("the cat runs", "de", target), ("two by two, please.", "en", "en")]
    rows = [row for text in texts if (row := examples.row(*text)) is not None]
    features = model.features(SOUNDS[:2])
    longest = max(len(tokens) for _, tokens in rows)
    batch = Batch(
        features=features.values,
        num_frames=features.num_frames,
        source_language=torch.tensor([examples.number(source) for _, source, _ in texts]),
        target_language=torch.tensor([language for language, _ in rows]),
        targets=torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for _, tokens in rows]),
        num_targets=torch.tensor([len(tokens) for _, tokens in rows]),
    )
    loss = model.loss(batch)
    expected = 0.0
    for samples, (_, source, language), (_, tokens) in zip(SOUNDS, texts, rows, strict=False):
        inputs = reference_inputs(made, samples, Target(language=language, source=source))
        given = torch.cat([inputs["input_ids"], torch.tensor([tokens])], dim=1)
        with torch.no_grad():
            whole = {**inputs, "input_ids": given, "attention_mask": torch.ones_like(given)}
            logits = made.hf_model(**whole).logits[0, -len(tokens) - 1 : -1]
        if made.kind.startswith("granite"):
            logits = logits / made.hf_model.config.text_config.logits_scaling
        expected += float(torch.nn.functional.cross_entropy(logits, torch.tensor(tokens), reduction="sum"))
    assert loss.total.item() == pytest.approx(expected, rel=1e-4)
    assert loss.num_tokens == sum(len(tokens) for _, tokens in rows)


def test_speech_in_training_does_not_depend_on_its_neighbours(made: Checkpoint) -> None:
    """Nor do batch norms, of which Granite Speech has some, move."""
    model = made.model.train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    with torch.no_grad():
        together, alone = (model.encode(model.features(sounds)) for sounds in (SOUNDS, SOUNDS[:1]))
    model.eval()
    own = alone.states[0]
    torch.testing.assert_close(together.states[0, : len(own)], own, rtol=1e-3, atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_a_directory_goes_both_ways(made: Checkpoint, tmp_path: Path) -> None:
    """Ours writes what ours and transformers read, with the same tokens and adapters."""
    from sprachbund.models.io import load, save

    save(made.model, tmp_path / "written")
    again = load(tmp_path / "written")
    assert again.name == made.kind
    assert again.pairs() == made.model.pairs()
    theirs: Any = type(made.hf_model).from_pretrained(tmp_path / "written").eval()
    other = Checkpoint(
        kind=made.kind,
        directory=tmp_path / "written",
        hf_model=theirs,
        processor=made.processor,
        model=again,  # type: ignore[arg-type]
    )
    expected = rows(made, SOUNDS[:1], targets(made)[0])
    assert rows(other, SOUNDS[:1], targets(made)[0]) == expected
    test_prompts_and_logits_are_those_of_transformers(other)
