"""Training a draft through the one loop: the model stays as it is, and what is learned predicts better."""

from pathlib import Path

import pytest
import torch

from sprachbund.data.batching import BatchingOptions
from sprachbund.data.loading import Corpus, ExampleOptions, batches
from sprachbund.data.manifest import Manifest
from sprachbund.decoding.drafts import load_draft
from sprachbund.errors import SprachbundError
from sprachbund.models.conformer import Conformer
from sprachbund.models.drafts import run_decoder
from sprachbund.nn.decoder import TextDecoder
from sprachbund.nn.drafts import MedusaHeads, Parasite
from sprachbund.training.draft import DraftOptions, DraftTraining, make_network, train_draft
from tests.training.made import make_corpus, make_model, make_training_data, options


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    directory = tmp_path_factory.mktemp("tones")
    make_corpus(directory, 32)
    return make_training_data(directory)


@pytest.fixture(scope="module")
def model() -> Conformer:
    return make_model().eval()


def batch_of(corpus: Corpus):
    return next(
        iter(batches(corpus, BatchingOptions(batch_s=6.0, max_utterances=8, max_duration_s=20, seed=0), 0))
    )


def test_the_decoder_is_trained_on_what_the_batch_holds(corpus: Corpus, model: Conformer) -> None:
    batch = batch_of(corpus)
    given = model.decoder_batch(batch)
    assert given.prompts.unique().tolist() == [1]
    assert int(given.loss_mask.sum()) == int(batch.num_targets.sum())
    assert torch.equal(given.tokens[:, 0], batch.target_language)
    for r, count in enumerate(batch.num_targets.tolist()):
        assert torch.equal(given.labels[r, :count], batch.targets[r, :count])
        assert torch.equal(given.tokens[r, 1:count], batch.targets[r, : count - 1])
    with torch.no_grad():
        log_probs = model.decoder.logits(
            model.decoder(given.tokens, given.memory.states, given.memory.num_frames)
        )
    logits = run_decoder(model.decoder, given).logits(model.decoder, given.loss_mask)
    torch.testing.assert_close(logits, log_probs[given.loss_mask], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["parasite", "medusa"])
def test_the_loss_is_that_of_drafting_position_by_position(
    kind: str, corpus: Corpus, model: Conformer
) -> None:
    wanted = DraftOptions.model_validate({"kind": kind, "blocks": 1, "heads": 2})
    network, batch = make_network(model, wanted), batch_of(corpus)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        loss = DraftTraining(model, network, wanted).loss(batch)
        given, decoder = model.decoder_batch(batch), model.decoder
        total, count = 0.0, 0
        for r, length in enumerate(batch.num_targets.tolist()):
            memory = given.memory.states[r // batch.rows_per_utterance][None]
            frames = given.memory.num_frames[r // batch.rows_per_utterance][None]
            row = torch.cat([given.tokens[r, :1], batch.targets[r, :length]])[None]
            own = decoder.logits(decoder(row, memory, frames)).log_softmax(-1)[0]
            normed = decoder.norm(decoder(row, memory, frames))[0]
            for i in range(length):
                for k, logits in enumerate(_draft_logits(network, decoder, row, memory, frames, normed, i)):
                    place = i + k + (kind == "medusa")
                    if place >= length or (kind == "parasite" and i == 0):
                        continue
                    log_probs = logits.log_softmax(-1)
                    label = -log_probs[row[0, place + 1]]
                    divergence = (own[place].exp() * (own[place] - log_probs)).sum()
                    total += 0.8**k * float(2 * label + 0.5 * divergence)
                    count += k == 0
    assert float(loss.total) == pytest.approx(total, rel=1e-4)
    assert loss.num_tokens == count


def _draft_logits(network, decoder: TextDecoder, row, memory, frames, normed, i: int) -> list[torch.Tensor]:
    """Logits of all draft tokens when the token at `i` is the newest, or the one before it for Medusa."""
    if isinstance(network, MedusaHeads):
        return list(network.logits(decoder, normed[i]))
    assert isinstance(network, Parasite)
    cache = decoder.start(memory, frames, capacity=row.shape[1])
    if i:
        decoder.step(row[:, :i], cache)
    cross = network.remember(memory, cache.memory_allowed)
    h = network.predict(decoder, row[:, i], torch.tensor([i]), cache, cross)
    return [network.logits(decoder, h)[0, 0]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parasite", "medusa"])
def test_training_moves_the_draft_and_not_a_bit_of_the_model(
    kind: str, corpus: Corpus, tmp_path: Path
) -> None:
    model = make_model().eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    wanted = DraftOptions.model_validate({"kind": kind, "blocks": 1})
    batch = batch_of(corpus)
    start = make_network(model, wanted)
    untrained = DraftTraining(model, start, wanted).loss(batch).total.item()
    draft = train_draft(model, corpus, wanted, options(30), tmp_path, dev=corpus, report=lambda line: None)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert DraftTraining(model, draft.network, wanted).loss(batch).total.item() < untrained
    assert set(draft.card.acceptance) == {"de>de", "de>en", "en>de", "en>en"}
    draft.save(tmp_path / "draft.safetensors")
    again = load_draft(model, str(tmp_path / "draft.safetensors"))
    assert again.acceptance == draft.acceptance
    assert again.typical_length == draft.card.typical_length
    assert 1 <= draft.card.typical_length <= 31


def test_more_blocks_than_the_decoder_has_layers_are_named(model: Conformer) -> None:
    with pytest.raises(
        SprachbundError, match="2 blocks cannot share the decoder's 1 layers; set blocks to 1"
    ):
        make_network(model, DraftOptions(blocks=2))


def test_whisper_is_trained_under_its_prompts(tmp_path: Path) -> None:
    from sprachbund.models.whisper import load
    from sprachbund.models.whisper.model import WhisperExamples, row_prompts
    from tests.training.owned import make_tones, make_whisper

    data, model = make_tones(tmp_path / "data"), load(make_whisper(tmp_path / "whisper"))
    examples = WhisperExamples(model, ["en", "de"])
    plain = ExampleOptions(rows_per_utterance=2, time_masks=0, frequency_masks=0)
    corpus = Corpus([(Manifest(data), 1.0)], examples, plain)
    batch = next(
        iter(batches(corpus, BatchingOptions(batch_s=8.0, max_utterances=8, max_duration_s=0.9, seed=0), 0))
    )
    given = model.decoder_batch(batch)
    counts = batch.num_targets.tolist()
    assert int(given.loss_mask.sum()) == sum(counts) > 0
    for r, (prompt, count) in enumerate(zip(row_prompts(model, batch), counts, strict=True)):
        if count > 1:  # a row of its end token alone has nothing to be drafted
            assert int(given.prompts[r]) == len(prompt)
            assert given.tokens[r, : len(prompt)].tolist() == prompt
            assert torch.equal(given.labels[r][given.loss_mask[r]], batch.targets[r, :count])
    training = options(2, batch_s=8.0, max_duration_s=0.9)
    draft = train_draft(
        model,
        corpus,
        DraftOptions(blocks=1),
        training,
        tmp_path / "run",
        dev=corpus,
        report=lambda line: None,
    )
    assert set(draft.acceptance) == {"de>de", "de>en", "en>en"}
