import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sprachbund.decoding.languages import UNDETERMINED, LanguageTracker, identify, language_posterior

TAGS = ("de", "en", "es", "fr")


@given(
    seed=st.integers(0, 10**6), windows=st.integers(1, 5), allowed=st.sets(st.sampled_from(TAGS), min_size=1)
)
def test_the_posterior_is_the_geometric_mean_renormalised(seed, windows, allowed):
    probabilities = np.random.default_rng(seed).dirichlet([0.7] * 4, windows) + 1e-6
    mean = np.prod(probabilities, axis=0) ** (1 / windows)
    mean[[tag not in allowed for tag in TAGS]] = 0.0
    posterior = language_posterior(torch.from_numpy(probabilities).log(), TAGS, sorted(allowed))
    assert posterior.tolist() == pytest.approx(mean / mean.sum(), abs=1e-9)


def test_the_best_of_the_allowed_is_taken():
    log_probs = torch.tensor([[0.6, 0.3, 0.06, 0.04]]).log()
    assert identify(log_probs, TAGS, None).language == "de"
    identified = identify(log_probs, TAGS, ("en", "fr"))
    assert identified.language == "en"
    assert identified.probability == pytest.approx(0.3 / 0.34)
    assert identify(log_probs, TAGS, ("es",)).probability == pytest.approx(1.0)


def test_an_even_posterior_is_undetermined_and_a_single_choice_is_not():
    assert identify(torch.zeros(2, 4).log_softmax(-1), TAGS, None).language == UNDETERMINED
    assert identify(torch.zeros(2, 1), ("en",), None).language == "en"


def test_doubtful_spans_lean_on_those_before_and_decisive_ones_do_not():
    german = torch.tensor([0.97, 0.01, 0.01, 0.01]).log()
    doubtful = torch.tensor([0.30, 0.45, 0.15, 0.10]).log()
    french = torch.tensor([0.01, 0.01, 0.01, 0.97]).log()
    tracker = LanguageTracker(TAGS, None, 3)
    assert [tracker.push(x).language for x in (german, doubtful, french, german)] == ["de", "de", "fr", "de"]
    alone = LanguageTracker(TAGS, None, 1)
    assert [alone.push(x).language for x in (german, doubtful)] == ["de", "en"]


def test_speech_that_is_surely_in_a_language_that_may_not_be_spoken_is_told():
    german = torch.tensor([0.97, 0.01, 0.01, 0.01]).log()
    doubtful = torch.tensor([0.15, 0.45, 0.30, 0.10]).log()
    restricted, free = LanguageTracker(TAGS, ("es", "fr"), 1), LanguageTracker(TAGS, None, 1)
    for span in (german, doubtful, german):
        assert restricted.push(span).language in ("es", UNDETERMINED)
        free.push(span)
    assert (restricted.warning or "").startswith(
        "2 of 3 spans of speech sound like de (German), and may only be es (Spanish), fr (French)"
    )
    assert free.warning is None
    declared = LanguageTracker(TAGS, ("de", "fr"), 1)
    declared.push(german)
    assert declared.warning is None


def test_a_language_that_the_caller_named_is_doubted_when_most_speech_sounds_like_another():
    german = torch.tensor([0.97, 0.01, 0.01, 0.01]).log()
    english = torch.tensor([0.05, 0.93, 0.01, 0.01]).log()
    doubtful = torch.tensor([0.80, 0.10, 0.05, 0.05]).log()
    tracker = LanguageTracker(TAGS, None, 1, given="en")
    for span in (german, english, doubtful):
        tracker.compare(span)
    assert tracker.warning is None
    tracker.compare(german)
    assert tracker.warning is None  # two of four are not most of it
    tracker.compare(german)
    assert tracker.warning == (
        "3 of 5 spans of speech sound like de (German), not like en (English), which was named; name another language, "
        "or none to have it identified"
    )


def test_nothing_is_compared_where_nobody_named_the_language():
    german = torch.tensor([0.97, 0.01, 0.01, 0.01]).log()
    tracker = LanguageTracker(TAGS, ("en", "fr"), 1)
    tracker.compare(german)
    assert tracker.num_compared == 0
    assert tracker.warning is None
