"""Where texts lie in the scratch cache."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gem_rag.engines.vllm.prefill import assign_blocks


@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=12), block=st.integers(1, 40))
def test_each_text_fills_blocks_of_its_own_in_order(lengths: list[int], block: int) -> None:
    table, places = assign_blocks(np.array(lengths), block)
    rest = places.tolist()
    used: set[int] = set()
    for row, length in zip(table.tolist(), lengths, strict=True):
        own, rest = rest[:length], rest[length:]
        blocks = row[: -(-length // block)]
        assert own == [blocks[i // block] * block + i % block for i in range(length)]
        assert not used & set(blocks)
        used |= set(blocks)
    assert not rest
    assert used == set(range(len(used)))  # no block is left empty
