"""The LSTM of a prediction network by products of the native kernels, which a transducer steps once for every token.

Torch lays out all weights anew at every call, which for one token takes many times as long as the products. The
matrices are small beside those of an encoder: they are packed from the model when it is loaded, in 8 bits in any case,
and the file of packed weights knows nothing of them.

Shapes: B rows, U positions, L layers, I inputs, P width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sprachbund.engines.native_linear import NativeLinear
from sprachbund.engines.packing import pack_matrix


def is_plain_lstm(module: nn.Module) -> bool:
    """Whether a module is an LSTM of the kind that `NativeLSTM` stands for."""
    return (
        type(module) is nn.LSTM
        and module.bias
        and module.batch_first
        and not module.bidirectional
        and module.proj_size == 0
    )


class NativeLSTM(nn.Module):
    """Stands for an `nn.LSTM` whose `is_plain_lstm` is True; it has no gradient.

    What comes in and what a layer remembers are rounded to 8 bits with a scale each, so they are two products.

    Args:
        lstm: gives the weights.
        team: threads.
        instruction_set: name of the kernels.
    """

    def __init__(self, lstm: nn.LSTM, team: Any, instruction_set: str) -> None:
        super().__init__()
        self.width, self.num_layers = lstm.hidden_size, lstm.num_layers

        def layers(kind: str) -> nn.ModuleList:
            made = []
            for i in range(lstm.num_layers):
                weight, bias = (getattr(lstm, f"{name}_{kind}_l{i}").detach() for name in ("weight", "bias"))
                arrays = pack_matrix("matrix", weight, bias)
                made.append(NativeLinear(arrays, (weight.shape[0], weight.shape[1]), team, instruction_set))
            return nn.ModuleList(made)

        self.of_inputs, self.of_memory = layers("ih"), layers("hh")

    def forward(
        self, x: Tensor, before: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Outputs (B, U, P) of inputs (B, U, I), and hidden and cell (L, B, P) behind the last position.

        Args:
            x: inputs.
            before: hidden and cell before the first position; noughts if None.
        """
        if before is None:
            nought = x.new_zeros(self.num_layers, len(x), self.width)
            before = nought, nought
        hidden, cell = (list(part) for part in before)
        for layer in range(self.num_layers):
            given, outputs = self.of_inputs[layer](x), []
            for position in range(x.shape[1]):
                gates = given[:, position] + self.of_memory[layer](hidden[layer])
                into, keep, new, out = gates.chunk(4, dim=-1)
                cell[layer] = keep.sigmoid() * cell[layer] + into.sigmoid() * new.tanh()
                hidden[layer] = out.sigmoid() * cell[layer].tanh()
                outputs.append(hidden[layer])
            x = torch.stack(outputs, dim=1)
        return x, (torch.stack(hidden), torch.stack(cell))


def replace_lstms(module: nn.Module, team: Any, instruction_set: str) -> None:
    """Put native ones in the place of all plain LSTMs inside a module, which is changed.

    Args:
        module: a copy, as `with_native_linears` makes it.
        team: threads.
        instruction_set: name of the kernels.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if is_plain_lstm(child):
                parent.register_module(name, NativeLSTM(child, team, instruction_set))  # type: ignore[arg-type]
