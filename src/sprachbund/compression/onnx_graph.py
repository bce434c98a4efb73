"""A module as one ONNX file, traced by torch."""

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sprachbund.errors import SprachbundError
from sprachbund.models.streaming_onnx import Graph
from sprachbund.util.files import atomic_files

OPSET = 20
_LONGEST = 2**20
"""Largest size of an axis that may have any size; graphs themselves have no limit."""


def check_packages() -> None:
    """Raise a SprachbundError where a package is missing that the export needs."""
    try:
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError:
        raise SprachbundError(
            "exporting needs the packages onnx and onnxscript; run: pip install 'sprachbund[onnx]'"
        ) from None


def write_graph(
    module: nn.Module,
    graph: Graph,
    examples: Sequence[Tensor],
    directory: Path,
    *,
    num_named: int | None = None,
) -> None:
    """Write a module into `directory / graph.file`, with its weights in a file beside it if they are large.

    Args:
        module: takes and returns tensors, in the order of the graph's inputs and outputs.
        graph: names and shapes; axes with a name may have any size.
        examples: inputs; their values do not matter. No such axis may be 1, which would be taken for a constant.
        directory: directory of the graph, which has to exist.
        num_named: arguments of `forward` with names of their own; one of the form *args takes the rest. All if None.
    """
    sizes: dict[str, Any] = {}
    shapes = [_dynamic(each.shape, sizes) for each in graph.inputs]
    rest = [] if num_named is None else [tuple(shapes[num_named:])]
    with torch.no_grad(), _quiet("torch.onnx"):
        program = torch.onnx.export(
            module.eval(),
            tuple(examples),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            dynamic_shapes=(*shapes[:num_named], *rest),
            input_names=[each.name for each in graph.inputs],
            output_names=[each.name for each in graph.outputs],
        )
        assert program is not None
        with atomic_files(directory, last=graph.file) as draft:
            program.save(draft / graph.file, external_data=_is_large(module))


def write_quantized_graph(
    module: nn.Module, graph: Graph, examples: Sequence[Tensor], directory: Path
) -> None:
    """The same as `write_graph`, with matrices in 8 bits by ONNX Runtime's dynamic quantization.

    Rows of activations are rounded where they are multiplied; convolutions, embeddings and LSTMs stay in 32 bits.

    Args:
        module: as in `write_graph`, and so are the others.
        graph: graph of the file that is written.
        examples: inputs.
        directory: directory of the graph, which has to exist.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        write_graph(module, graph, examples, Path(temporary))
        with _quiet(""):
            quantize_dynamic(
                Path(temporary) / graph.file,
                directory / graph.file,
                op_types_to_quantize=["MatMul"],
                # Where weights are signed, processors without VNNI add up pairs in 16 bits, which may overflow.
                weight_type=QuantType.QUInt8,
                per_channel=True,
                use_external_data_format=_is_large(module, 8),
            )


def _is_large(module: nn.Module, bits: int = 32) -> bool:
    """Whether weights have to lie beside the graph, with so many bits for 32: one file holds less than 2 GiB."""
    return sum(x.nbytes for x in (*module.parameters(), *module.buffers())) * bits // 32 > 2**30


def _dynamic(shape: Sequence[int | str], sizes: dict[str, Any]) -> dict[int, Any]:
    """Axes that are named, by their names: "8*chunk" is eight times "chunk"."""
    axes = {}
    for axis, size in enumerate(shape):
        if isinstance(size, str):
            factor, _, name = size.rpartition("*")
            dim = sizes.setdefault(name, torch.export.Dim(name, max=_LONGEST))
            axes[axis] = int(factor) * dim if factor else dim
    return axes


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """The exporter and the quantizer speak of packages and steps that nobody needs."""
    logger, silent = logging.getLogger(name), logging.NullHandler()
    level = logger.level
    logger.setLevel(logging.ERROR)
    logger.addHandler(silent)  # or the root's first message would bring a handler that stays
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(silent)
