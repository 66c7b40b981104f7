"""Slices of item tables: the rows of each process, and initial weights equal to those of whole tables."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hafvt.ops import shards
from hafvt.ops.shards import Shard, init_normal, make_embedding

RANGES = [(0, 5), (5, 6), (6, 40)]


def all_shards(num_processes: int) -> list[Shard]:
    return [Shard.of_ranges(RANGES, process, num_processes) for process in range(num_processes)]


@pytest.mark.parametrize("num_processes", [1, 2, 3, 7])
def test_shard_rows_and_locations_cover_the_table_once(num_processes):
    table = torch.arange(40)[:, None]
    parts = all_shards(num_processes)
    slices = [shard.rows(table) for shard in parts]
    assert torch.cat(slices).sort(dim=0).values.equal(table)
    owners, positions = parts[0].locate(table[:, 0])
    for item, (owner, position) in enumerate(zip(owners.tolist(), positions.tolist(), strict=True)):
        assert slices[owner][position] == item
    sizes = [len(rows) for rows in slices]
    assert sizes == [shard.num_rows for shard in parts]
    assert max(sizes) - min(sizes) <= len(RANGES)


@pytest.mark.parametrize("num_processes", [1, 3])
def test_shard_ranges_are_those_of_the_domains_in_the_slice(num_processes):
    for shard in all_shards(num_processes):
        rows = shard.rows(torch.arange(40))
        *domains, catalog = shard.ranges
        assert catalog == slice(0, len(rows))
        for (start, stop), part in zip(RANGES, domains, strict=True):
            assert all(start <= row < stop for row in rows[part].tolist())
        assert sum(part.stop - part.start for part in domains) == len(rows)


def test_shard_of_a_subset_holds_the_same_items():
    mask = torch.rand(40, generator=torch.Generator().manual_seed(0)) < 0.5
    items = mask.nonzero()[:, 0]
    for shard in all_shards(3):
        expected = [item for item in shard.rows(torch.arange(40)).tolist() if mask[item]]
        subset = shard.subset(mask)
        assert subset.rows(items).tolist() == expected
        owners, positions = subset.locate(torch.arange(len(items)))
        assert positions[owners == shard.process].tolist() == list(range(len(expected)))


@pytest.mark.parametrize("num_rows", [1, 17, 63, 64, 65, 79, 80, 131])
def test_embedding_of_a_shard_has_the_weights_of_the_whole_one(num_rows, monkeypatch):
    monkeypatch.setattr(shards, "CHUNK_ROWS", 32)
    for num_processes in (2, 3):
        for process in range(num_processes):
            shard = Shard.of_ranges([(0, num_rows)], process, num_processes)
            torch.manual_seed(1)
            embedding = nn.Embedding(num_rows, 3)
            after_first = torch.rand(())
            nn.init.normal_(embedding.weight, std=0.02)
            torch.manual_seed(1)
            part = make_embedding(num_rows, 3, shard, sparse=False)
            assert torch.rand(()) == after_first
            init_normal(part.weight, shard, std=0.02)
            assert part.weight.equal(shard.rows(embedding.weight))


def test_shard_rows_of_parts_return_to_their_place_in_the_whole_table():
    table, copy = torch.arange(80).view(40, 2), torch.zeros(40, 2, dtype=torch.int64)
    single = Shard.of_ranges(RANGES, 0, 1)
    for shard in all_shards(3):
        assert shard.overlaps(single)
        assert shard.overlaps(shard)
        rows = shard.rows(table)
        for first in range(0, len(rows), 5):
            for start, part in shard.global_rows(first, rows[first : first + 5]):
                shards.copy_rows(copy, single, start, part)
    assert copy.equal(table)
    assert not all_shards(3)[0].overlaps(all_shards(3)[1])
