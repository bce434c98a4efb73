"""Examples and batches: languages travel with the rows, masks hide what they say, processes share a batch."""

import numpy as np
import pytest
import torch

from sprachbund.data.batch import NO_LANGUAGE
from sprachbund.data.batching import BatchingOptions
from sprachbund.data.loading import Corpus, ExampleOptions, batches, collate, spec_augment
from sprachbund.data.manifest import Manifest, ManifestWriter
from sprachbund.errors import SprachbundError
from sprachbund.text.tokenizer import END
from tests.training import made


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    made.make_corpus(directory)
    return made.make_training_data(directory)


def test_rows_hold_the_text_of_their_language(corpus):
    tokenizer = corpus.examples.tokenizer
    names = {tokenizer.language_id(tag): tag for tag in made.LANGUAGES}
    for index in range(10):
        utterance, _ = corpus.utterance(index)
        example = corpus[(0, index, 1.0)]
        assert made.LANGUAGES[example.source_language] == utterance.language
        assert corpus.examples.transcript_tokenizer.decode(example.transcript) == utterance.text
        for language, tokens in example.rows:
            assert tokens[-1] == END
            assert tokenizer.decode(tokens) == utterance.text_in(names[language])


@pytest.mark.parametrize("rows_per_utterance", [1, 2])
@pytest.mark.parametrize("share", [None, 0.0, 0.5, 1.0])
def test_targets_of_an_utterance_are_those_that_its_rows_get(tmp_path, share, rows_per_utterance):
    with ManifestWriter(tmp_path) as writer:
        for number, said in enumerate(
            (
                {"text": "one", "language": "en", "translations": {"de": "eins"}},
                {"text": "zwei", "language": "de"},
                {"text": "", "language": ""},
            )
        ):
            writer.add(np.zeros(8000, np.float32), speaker="", utterance_id=f"{number}", **said)
    examples = made.make_training_data(tmp_path).examples
    options = ExampleOptions(rows_per_utterance=rows_per_utterance, same_language=share)
    corpus = Corpus([(Manifest(tmp_path), 1.0)], examples, options)
    names = {examples.tokenizer.language_id(tag): tag for tag in made.LANGUAGES}
    both, alone, silent = (corpus.utterance(index)[0] for index in range(3))
    for utterance in (both, alone):
        draws = (corpus.rows(utterance, np.random.default_rng(seed)) for seed in range(40))
        assert corpus.targets_of(utterance) == {names[token] for rows in draws for token, _ in rows}
    assert corpus.targets_of(silent) == set()


def test_batch_pads_and_counts(corpus):
    examples = [corpus[(0, i, 1.0)] for i in range(5)]
    batch = collate(examples, rows_per_utterance=3, round_frames=32)
    assert batch.features.shape[1] % 32 == 0
    assert batch.num_utterances == 5
    assert batch.rows_per_utterance == 3
    for i, example in enumerate(examples):
        frames = example.features.shape[0]
        torch.testing.assert_close(batch.features[i, :frames], example.features)
        assert not batch.features[i, frames:].any()
    assert (batch.num_targets.view(5, 3)[:, 2] == 0).all()  # there are only two languages
    assert 0 <= batch.padding < 1


def test_no_speech_has_empty_rows(tmp_path):
    with ManifestWriter(tmp_path) as writer:
        writer.add(np.zeros(8000, np.float32), text="", language="", speaker="", utterance_id="silence")
    example = made.make_training_data(tmp_path)[(0, 0, 1.0)]
    assert example.source_language == NO_LANGUAGE
    assert example.transcript == []
    assert [tokens for _, tokens in example.rows] == [[END], [END]]


def test_processes_share_each_batch(corpus):
    options = BatchingOptions(batch_s=6.0)
    whole = list(batches(corpus, options, epoch=1, first=2))
    parts = [list(batches(corpus, options, epoch=1, first=2, share=(rank, 2))) for rank in range(2)]
    for i, batch in enumerate(whole):
        assert sum(int(part[i].num_targets.sum()) for part in parts) == int(batch.num_targets.sum())
        first = parts[0][i]
        torch.testing.assert_close(first.num_frames, batch.num_frames[0::2])
        length = first.features.shape[1]
        torch.testing.assert_close(first.features, batch.features[0::2, :length])


@pytest.mark.parametrize("count", [2, 4])
def test_a_process_without_utterances_of_a_batch_gets_one_that_does_not_count(corpus, count):
    options = BatchingOptions(max_utterances=3)
    whole = list(batches(corpus, options, epoch=1))
    parts = [list(batches(corpus, options, epoch=1, share=(rank, count))) for rank in range(count)]
    assert all(len(part) == len(whole) for part in parts)
    for number, batch in enumerate(whole):
        shares = [part[number] for part in parts]
        real = [share for share in shares if not share.is_placeholder]
        assert len(real) == min(count, batch.num_utterances)
        assert sum(share.num_utterances for share in real) == batch.num_utterances
        assert sum(int(share.num_targets.sum()) for share in shares) == int(batch.num_targets.sum())
        for share in shares[len(real) :]:
            assert (share.weight, share.num_utterances) == (0.0, 1)
            assert share.num_frames[0] == batch.num_frames[0]


def test_spec_augment_masks_within_its_limits():
    features = torch.arange(200 * 80, dtype=torch.float32).reshape(200, 80)
    options = ExampleOptions(time_masks=1, max_time_mask_s=0.3, frequency_masks=1, max_frequency_mask=10)
    changed_rows = changed_columns = 0
    for seed in range(30):
        masked = spec_augment(features, np.random.default_rng(seed), options)
        changed = masked != features
        rows, columns = changed.all(1).sum(), changed.all(0).sum()
        assert rows <= 30
        assert columns <= 10
        changed_rows, changed_columns = changed_rows + int(rows), changed_columns + int(columns)
        assert (masked[changed] == features.mean()).all()
    assert changed_rows > 0
    assert changed_columns > 0


def test_speech_in_a_language_the_model_lacks_is_an_error(tmp_path):
    with ManifestWriter(tmp_path) as writer:
        writer.add(np.zeros(8000, np.float32), text="um", language="pt", speaker="s", utterance_id="a")
    with pytest.raises(SprachbundError, match="pt"):
        made.make_training_data(tmp_path)
    assert len(Manifest(tmp_path)) == 1
