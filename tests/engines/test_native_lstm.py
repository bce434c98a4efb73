"""LSTMs by products of the kernels, and the transducers that step them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sprachbund.decoding.options import DecodingOptions
from sprachbund.decoding.search import search
from sprachbund.engines.choice import engine_for
from sprachbund.engines.extension import native
from sprachbund.engines.native_lstm import NativeLSTM, is_plain_lstm, replace_lstms
from sprachbund.models.base import Target
from tests.engines.support import needs_native, on_every_set, quantized_linear, randomised, relative_error
from tests.models.contract import BUILDERS

pytestmark = needs_native


def by_hand(lstm: nn.LSTM, x: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
    """Outputs (B, U, P) with every product rounded to 8 bits."""
    for layer in range(lstm.num_layers):
        h, c, outputs = hidden[layer], cell[layer], []
        for t in range(x.shape[1]):
            gates = sum(
                quantized_linear(
                    part, getattr(lstm, f"weight_{kind}_l{layer}"), getattr(lstm, f"bias_{kind}_l{layer}")
                )
                for part, kind in ((x[:, t], "ih"), (h, "hh"))
            )
            assert isinstance(gates, Tensor)
            into, keep, new, out = gates.chunk(4, -1)
            c = keep.sigmoid() * c + into.sigmoid() * new.tanh()
            h = out.sigmoid() * c.tanh()
            outputs.append(h)
        x = torch.stack(outputs, 1)
    return x


@on_every_set
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("inputs", "width", "layers"), [(20, 24, 2), (32, 32, 1)])
def test_an_lstm_is_its_products_in_8_bits(
    isa: str, threads: int, inputs: int, width: int, layers: int
) -> None:
    lstm = randomised(nn.LSTM(inputs, width, layers, batch_first=True), 0)
    found = NativeLSTM(lstm, native().Team(threads), isa)
    x, hidden, cell = torch.randn(3, 7, inputs), torch.randn(layers, 3, width), torch.randn(layers, 3, width)
    outputs, (last, cells) = found(x, (hidden, cell))
    assert relative_error(outputs, by_hand(lstm, x, hidden, cell)) < 0.01
    wanted, (h, c) = lstm(x, (hidden, cell))
    assert max(relative_error(*pair) for pair in ((outputs, wanted), (last, h), (cells, c))) < 0.03
    nothing = torch.zeros_like(hidden)
    assert torch.equal(found(x)[0], found(x, (nothing, nothing))[0])
    # Position by position, row by row: what a step gives is the same.
    for row in range(3):
        state = hidden[:, row : row + 1], cell[:, row : row + 1]
        for t in range(7):
            output, state = found(x[row : row + 1, t : t + 1], state)
            assert torch.equal(output[0, 0], outputs[row, t])


@pytest.mark.parametrize(
    "other",
    [
        nn.GRU(8, 8, batch_first=True),
        nn.LSTM(8, 8),
        nn.LSTM(8, 8, batch_first=True, bias=False),
        nn.LSTM(8, 8, batch_first=True, bidirectional=True),
        nn.LSTM(8, 8, batch_first=True, proj_size=4),
    ],
)
def test_other_kinds_stay_with_torch(other: nn.Module) -> None:
    assert not is_plain_lstm(other)
    holder = nn.ModuleDict({"inner": nn.ModuleList([other])})
    replace_lstms(holder, native().Team(1), "portable")
    assert holder["inner"][0] is other  # type: ignore[index]


@pytest.mark.parametrize("name", ["Parakeet TDT", "streaming transducer"])
def test_a_transducer_writes_with_it_and_its_model_keeps_its_own(name: str, tmp_path: Path) -> None:
    family: Any = BUILDERS[name].build(tmp_path)
    chosen: Any = engine_for(family, "native", threads=1, compare=False)
    able = chosen.family.capabilities
    transducer = able.transducer if able.streaming is None else able.streaming.transducer
    assert isinstance(transducer.prediction.lstm, NativeLSTM)
    assert any(type(part) is nn.LSTM for part in family.modules())
    samples = [np.random.default_rng(7).standard_normal(32000).astype(np.float32) * 0.1]
    source = sorted(family.source_languages)[0]
    with torch.inference_mode():
        memory = chosen.family.encode(chosen.family.features(samples))
        [[row]] = search(
            chosen.family, memory, [[Target(language=source, source=source)]], DecodingOptions(max_tokens=9)
        )
    assert len(row.tokens) <= 9
