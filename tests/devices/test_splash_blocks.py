"""The blocks of a TPU's attention kernel: they divide every sequence, and fit the fast memory of every chip."""

import pytest

from jaxpa import kernels

MIB = 2**20
# Queries and keys of a block: MiB that v5e's compiler (libtpu 0.0.42) asked for with 24 heads, or None: at most its 16.
COMPILED = {
    (1536, 4608): 35.5, (768, 4608): 19.4, (768, 2304): None, (512, 4608): None, (768, 1536): None, (384, 4608): None,
}  # fmt: skip


@pytest.mark.parametrize("columns", range(1024, 20480, kernels.UNIT))
def test_every_sequence_has_blocks(columns):
    for rows in (1024, 1536, 4608, columns):
        queries, keys, part = kernels._block_sizes(rows, columns)
        assert rows % queries == columns % keys == keys % part == 0
        assert queries % kernels.LANES == part % kernels.LANES == 0
        assert kernels._vmem(queries, keys, kernels.LANES) <= 16 * MIB
        assert keys >= min(columns, 1024), "many short passes over the keys are slow"
        assert part >= 512


@pytest.mark.parametrize(("blocks", "mib"), COMPILED.items(), ids=str)
def test_the_formula_knows_what_the_compiler_refused(blocks, mib):
    """It counts all logits at once, and so is an upper bound: within a tenth of the largest."""
    estimate = kernels._vmem(*blocks, kernels.LANES) / MIB
    assert estimate <= 16 if mib is None else mib <= estimate <= 1.1 * mib


def test_the_sizes_of_flux():
    """1024 x 1024 pixels with 512 tokens of text; with a reference's tokens in the context; 512 x 512."""
    assert kernels._block_sizes(4608, 4608) == (512, 4608, 1536)
    assert kernels._block_sizes(4608, 8704) == (512, 4352, 2176)
    assert kernels._block_sizes(1536, 1536)[1:] == (1536, 1536)
