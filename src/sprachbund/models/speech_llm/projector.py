"""From encoder states to speech tokens: frames spliced, then mixtures of experts (arXiv 2511.10670, its figure).

Only valid speech tokens go through the layers, end to end, so padding can change neither them nor any loss.
Shapes: B utterances, S encoder states, P speech tokens, N valid ones of all utterances, D width, G groups.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sprachbund.models.speech_llm.config import ProjectorOptions
from sprachbund.nn.conformer import valid_frames
from sprachbund.nn.moe import MixtureOfExperts, Routing


@dataclass(frozen=True, kw_only=True)
class SpeechTokens:
    """The speech tokens of several utterances, which a language model reads.

    Attributes:
        states: (B, P, D), zeros behind the end.
        num_tokens: valid ones (B,).
        utterance: (N,) the utterance of each row of the routings.
        routings: routings of the L layers.
    """

    states: Tensor
    num_tokens: Tensor
    utterance: Tensor
    routings: tuple[Routing, ...]

    def group_probs(self) -> Tensor:
        """Mass of the groups, the mean over the layers, (B, P, G); zeros behind the end."""
        mean = torch.stack([routing.group_log_probs().exp() for routing in self.routings]).mean(0)
        valid = valid_frames(self.num_tokens, self.states.shape[1])
        out = mean.new_zeros(*valid.shape, mean.shape[1])
        out[valid] = mean
        return out


class Projector(nn.Module):
    """Splices states, brings them to the language model's width, and sends them through the mixtures.

    Args:
        encoder_width: D of the encoder.
        width: D of the language model.
        options: sizes and groups.
    """

    def __init__(self, encoder_width: int, width: int, options: ProjectorOptions) -> None:
        super().__init__()
        self.spliced_frames = options.spliced_frames
        self.expand = nn.Linear(encoder_width * options.spliced_frames, width)
        self.layers = nn.ModuleList(
            MixtureOfExperts(
                width,
                options.hidden_width,
                num_groups=len(options.groups),
                group_size=options.group_size,
                num_chosen=options.num_chosen,
                context=options.router_context,
            )
            for _ in range(options.num_layers)
        )

    def forward(self, states: Tensor, num_states: Tensor, allowed: Tensor | None = None) -> SpeechTokens:
        """States (B, S, D of the encoder), of which `num_states` (B,) are valid, to speech tokens.

        `allowed` is boolean (B, G): the groups that an utterance's tokens may go to.

        Args:
            states: states of the encoder (B, S, D).
            num_states: valid states (B,).
            allowed: boolean (B, G), the groups that an utterance's tokens may go to; all if None.
        """
        num_tokens = self.count(num_states)
        spliced = self._spliced(states, num_states, int(num_tokens.max()) if len(num_tokens) else 0)
        valid = valid_frames(num_tokens, spliced.shape[1])
        utterance = valid.nonzero()[:, 0]
        x, routings = self.expand(spliced[valid]), []
        for layer in self.layers:
            x, routing = layer(x, None if allowed is None else allowed[utterance], valid)
            routings.append(routing)
        out = x.new_zeros(*valid.shape, x.shape[1])
        out[valid] = x
        return SpeechTokens(states=out, num_tokens=num_tokens, utterance=utterance, routings=tuple(routings))

    def count(self, num_states: Tensor) -> Tensor:
        """Speech tokens that so many states give: the last may be of fewer states."""
        return (num_states + self.spliced_frames - 1) // self.spliced_frames

    def _spliced(self, states: Tensor, num_states: Tensor, num_tokens: int) -> Tensor:
        """(B, P, D times the frames), zeros for what lies behind the end."""
        missing = max(0, num_tokens * self.spliced_frames - states.shape[1])
        padded = nn.functional.pad(states, (0, 0, 0, missing))[:, : num_tokens * self.spliced_frames]
        padded = padded * valid_frames(num_states, padded.shape[1])[..., None].to(padded.dtype)
        return padded.unflatten(1, (num_tokens, self.spliced_frames)).flatten(2)
