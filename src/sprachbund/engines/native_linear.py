"""Linear layers and LSTMs in the native kernels, one by one, for models whose other operations stay on torch.

Streaming transducers have many kinds of state between their layers and few rows in a chunk, language models one row of
billions of weights: nearly all of their time is that of linear layers. Each of these becomes a `NativeLinear`, in 8
bits, in 4, or in the 4 bits that the model is stored in, which torch would unpack at every chunk.

Shapes: N rows, I inputs, O outputs; of LSTMs B rows, U positions, L layers, P width.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sprachbund.engines.extension import enough_memory, native
from sprachbund.engines.options import WeightNumbers
from sprachbund.engines.packing import BLOCK, Arrays, pack_blocks, pack_linear, pack_matrix, pad
from sprachbund.engines.torch_layers import plain_linear
from sprachbund.nn.causal_lm import CausalLM
from sprachbund.nn.quantized import BlockLinear
from sprachbund.nn.streaming_conformer import RelativeAttention


class NativeModule(nn.Module):
    """A module that the native kernels compute; it has no gradient.

    Args:
        arrays: packed weights.

    Attributes:
        numbers: numbers of its linear layers.
        num_weights: numbers in its matrices, padding included.
    """

    def __init__(self, arrays: Arrays) -> None:
        super().__init__()
        codes = sum(2 * a.numel() for name, a in arrays.items() if name.endswith(".codes"))
        self.numbers: WeightNumbers = "int4" if codes else "int8"
        self.num_weights = codes + sum(a.numel() for name, a in arrays.items() if name.endswith(".values"))


class NativeLinear(NativeModule):
    """Stands for an `nn.Linear`, or for a `BlockLinear`.

    Args:
        arrays: packed, as "matrix".
        sizes: O and I.
        team: threads.
        instruction_set: name of the kernels.
    """

    def __init__(self, arrays: Arrays, sizes: tuple[int, int], team: Any, instruction_set: str) -> None:
        super().__init__(arrays)
        self.out_features, self.in_features = sizes
        self._native = native().Linear(
            arrays, instruction_set, team, rows=self.out_features, inputs=self.in_features
        )

    @enough_memory()
    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O); every row is rounded to 8 bits by itself."""
        rows = pad(x.detach().reshape(-1, self.in_features).float(), 1, BLOCK).contiguous()
        out = torch.empty(len(rows), self.out_features)
        self._native.run(rows, out)
        return out.view(*x.shape[:-1], self.out_features).to(x.dtype)


class KeptProduct(nn.Module):
    """Gives again what a module made of the same input, as of the distances between the frames of a chunk.

    Args:
        module: module without a state.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._known: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Output of the module for x."""
        known = self._known  # read once: another thread may bring another input in between
        if known is None or not torch.equal(known[0], x):
            known = self._known = x, self.module(x)
        return known[1]


def linears(module: nn.Module) -> dict[str, nn.Linear | BlockLinear]:
    """The linear layers of a module, by their names, but those of adapters, which are small and ask for their dtype.

    The output matrix of a language model whose embeddings it shares is one of them: "lm_head".
    """
    layers: dict[str, nn.Linear | BlockLinear] = {
        name: part
        for name, part in module.named_modules()
        if (isinstance(part, BlockLinear) or (isinstance(part, nn.Linear) and type(part) is nn.Linear))
        and not any(step.startswith(_ADAPTERS) for step in name.split("."))
    }
    if isinstance(module, CausalLM) and module.shape.tied:
        layers[_OUTPUT] = plain_linear(module.embed_tokens.weight)
    return layers


_ADAPTERS = "lora_"
_OUTPUT = "lm_head"


def linear_shapes(module: nn.Module, weights: WeightNumbers) -> dict[str, Any]:
    """Outputs, inputs and numbers of every linear layer of a module.

    Args:
        module: module of a model.
        weights: numbers asked for.
    """
    return {
        name: [part.out_features, part.in_features, _numbers(name, part, weights)]
        for name, part in linears(module).items()
    }


def pack_linears(module: nn.Module, weights: WeightNumbers) -> Arrays:
    """All linear layers of a module, as NAME.matrix; codes of 4 bits as they are.

    Args:
        module: module of a model.
        weights: numbers asked for.
    """
    arrays: Arrays = {}
    for name, part in linears(module).items():
        if isinstance(part, BlockLinear) and (part.bits, part.block) == (4, 32):
            arrays |= pack_blocks(f"{name}.matrix", part.packed, part.bias)
        else:
            numbers = _numbers(name, part, weights)
            arrays |= pack_linear(f"{name}.matrix", part.weight, part.bias, numbers)
    return arrays


def with_native_linears(
    module: nn.Module, part: Callable[[str], Arrays], team: Any, instruction_set: str
) -> nn.Module:
    """A copy of a module with native linear layers, that shares all else with it.

    Args:
        module: module of a model.
        part: gives the packed arrays under a name.
        team: threads.
        instruction_set: name of the kernels.
    """

    known = linears(module)

    def native_of(name: str) -> NativeLinear:
        sizes = (known[name].out_features, known[name].in_features)
        return NativeLinear(part(name), sizes, team, instruction_set)

    def copied(layer: nn.Module, name: str) -> nn.Module:
        if name in known:
            return native_of(name)
        made = copy.copy(layer)
        made._modules = {
            n: None if m is None else copied(m, f"{name}.{n}" if name else n)
            for n, m in layer._modules.items()
        }
        if isinstance(layer, RelativeAttention):
            # Distances are those of a chunk and its past, the same at every chunk: a quarter of the products.
            made._modules["distance"] = KeptProduct(copied(layer.distance, f"{name}.distance"))
        return made

    whole = copied(module, "")
    if _OUTPUT in known and _OUTPUT not in whole._modules:
        whole._modules[_OUTPUT] = native_of(_OUTPUT)
    return whole


def matrix_of(arrays: Arrays, layer: str) -> Arrays:
    """The arrays of one linear layer, as "matrix", of those that `pack_linears` packed.

    Args:
        arrays: arrays of a module.
        layer: name of the layer in the arrays.
    """
    prefix = f"{layer}."
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(f"{prefix}matrix.")}


def _numbers(name: str, part: nn.Linear | BlockLinear, weights: WeightNumbers) -> WeightNumbers:
    """The numbers asked for; those of stored codes stay, and output matrices have 8 bits, as in all native decoders."""
    if isinstance(part, BlockLinear) and (part.bits, part.block) == (4, 32):
        return "int4"
    return "int8" if name.rpartition(".")[2] == _OUTPUT else weights


# The LSTM of a prediction network, which a transducer steps once for every token. Torch lays out all weights anew at
# every call, which for one token takes many times as long as the products. The matrices are small beside those of an
# encoder: they are packed from the model when it is loaded, in 8 bits in any case, and the file of packed weights knows
# nothing of them.


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
