import pytest

from sprachbund.decoding.options import DecodingOptions
from sprachbund.evaluation.options import EvaluationOptions
from sprachbund.evaluation.run import evaluate
from tests.evaluation.tiny_model import save_tiny_model, write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus")


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_options():
    return EvaluationOptions(
        decoding=DecodingOptions(max_tokens=10), no_speech_per_kind=1, batch_size=4, first_segments=1
    )


@pytest.fixture(scope="session")
def evaluated(corpus, model_directory, tiny_options, tmp_path_factory):
    """A directory of results, and the evaluation that wrote it."""
    out = tmp_path_factory.mktemp("results") / "run"
    return out, evaluate([corpus], model_directory, tiny_options, out=out)
