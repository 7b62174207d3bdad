"""One short text at a time on a GPU: its operations recorded once, and launched all at once.

A query's pass launches some 1,500 operations for a few rows, and waits for the CPU that launches
them. A CUDA graph launches them in one call. It holds for one shape, so texts are padded to a few
lengths, each recorded when it is first met.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gem_rag.core.attention import lower_on_device
from gem_rag.core.encoder import GemEncoder
from gem_rag.core.layout import Layout, Row, TokenFacts
from gem_rag.core.transfer import to_device

WIDTHS = (16, 32, 64, 128, 256)  # tokens that recorded texts are padded to
Replay = Callable[[], Tensor]


class QueryGraphs:
    """Recorded passes of one text.

    Args:
        encoder: A model whose weights stay where they are.
    """

    def __init__(self, encoder: GemEncoder) -> None:
        self._encoder = encoder
        self._recorded: dict[int, tuple[Tensor, Replay]] = {}

    def takes(self, row: Row) -> bool:
        """Whether a row is short, and has one vector of all of it."""
        return len(row.text) <= WIDTHS[-1] and row == Row.whole(row.text)

    def has_recorded(self, row: Row) -> bool:
        """Whether a row that it takes needs no recording."""
        return self._width(row) in self._recorded

    def embed(self, row: Row) -> Tensor:
        """A row's unit vector, float32 [1, dim]; valid until the next one.

        Raises:
            RuntimeError: The model does what cannot be recorded.
        """
        width = self._width(row)
        stacked = to_device(_padded(row, width, self._encoder.k).stacked, self._encoder.device)
        if width not in self._recorded:
            self._recorded[width] = stacked, self._record(stacked, width)
        inputs, replay = self._recorded[width]
        inputs.copy_(stacked)
        return replay()

    def _record(self, stacked: Tensor, width: int) -> Replay:
        extent = width + self._encoder.k

        def run() -> Tensor:
            return self._encoder.embed_lowered(lower_on_device(stacked, extent, width))

        return record(run)

    def _width(self, row: Row) -> int:
        return next(width for width in WIDTHS if len(row.text) <= width)


def _padded(row: Row, width: int, k: int) -> Layout:
    """The "aligned" layout of a row beside one of so many tokens, without the latter."""
    both = Layout.build([row, Row.whole([0] * width)], k)
    return Layout(both.ids[:1], TokenFacts(*(fact[:1] for fact in both.tokens)), k, width)


def record(run: Callable[[], Tensor]) -> Replay:
    """Record what `run` launches, as a function that launches it again and gives the same tensor.

    Raises:
        RuntimeError: It does what cannot be recorded, such as waiting for a result.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is set up by a first call must not be recorded
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on launching.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = run()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
