"""What a router learns of real speech, from the bundled encoder's states and the language loss alone."""

from pathlib import Path

import pytest
import torch

from sprachbund.corpora.mixed import MixedSpeechOptions, make_mixed
from sprachbund.data.language_spans import timed_spans
from sprachbund.data.manifest import Manifest
from sprachbund.models import io as directory
from sprachbund.models.speech_llm import ProjectorOptions
from sprachbund.models.speech_llm.encoders import of_family
from sprachbund.models.speech_llm.projector import Projector
from sprachbund.nn.moe import language_losses

pytestmark = pytest.mark.slow

GROUPS = ("es", "en")
LAYERS = (4,)
FRAME_S = 0.08

Heard = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""States (B, T, D), valid ones (B,), and of each valid one the number of its language, -1 where nobody speaks."""


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    make_mixed(folder, MixedSpeechOptions(train_utterances=60, heldout_utterances=16), workers=1)
    return folder


def heard(corpus: Path) -> Heard:
    encoder, manifest = of_family(directory.load()), Manifest(corpus)
    values, num_frames = encoder.features([manifest.samples(i) for i in range(len(manifest))])
    with torch.no_grad():
        states, num_states = encoder.read(values, num_frames, LAYERS)
    spoken = []
    for utterance, count in zip(manifest, num_states.tolist(), strict=True):
        spans = timed_spans(utterance) or ((0.0, utterance.duration_s, utterance.language),)
        middles_s = [(frame + 0.5) * FRAME_S for frame in range(count)]
        spoken += [next((GROUPS.index(tag) for a, b, tag in spans if a <= m < b), -1) for m in middles_s]
    return states, num_states, torch.tensor(spoken)


def share_right(projector: Projector, said: Heard) -> tuple[float, float]:
    """Of all frames in which somebody speaks, and of those in an utterance's rarer language."""
    states, num_states, spoken = said
    with torch.no_grad():
        tokens = projector(states, num_states)
    right = (
        torch.cat([p[:n] for p, n in zip(tokens.group_probs().argmax(-1), num_states, strict=True)]) == spoken
    )
    rarer = torch.cat(
        [(own == 0) == (2 * (own == 0).sum() < (own >= 0).sum()) for own in spoken.split(num_states.tolist())]
    )
    known = spoken >= 0
    return right[known].float().mean().item(), right[known & rarer].float().mean().item()


def test_the_likeliest_group_is_the_language_spoken_and_follows_switches(corpora: Path) -> None:
    torch.manual_seed(0)
    trained = [heard(corpora / "monolingual-train"), heard(corpora / "train")]
    options = ProjectorOptions(
        groups=tuple((tag,) for tag in GROUPS), spliced_frames=1, hidden_width=64, encoder_layers=LAYERS
    )
    projector = Projector(trained[0][0].shape[-1], 64, options)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=2e-3)
    for _ in range(40):
        for states, num_states, spoken in trained:
            groups = torch.eye(len(GROUPS), dtype=torch.bool)[spoken.clamp(min=0)] | (spoken < 0)[:, None]
            routings = projector(states, num_states).routings
            loss = sum((language_losses(routing, groups).mean() for routing in routings), torch.zeros(()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    alone, _ = share_right(projector, heard(corpora / "monolingual-test"))
    mixed, rarer = share_right(projector, heard(corpora / "test"))
    assert alone > 0.9
    assert mixed > 0.7
    assert rarer > 0.6
