"""Batches come out of the loader as they went in."""

import pickle

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regionclip.data.stacking import StackedBatch

TENSORS = st.builds(
    lambda shape, kind, seed: torch.randint(0, 9, shape, generator=torch.Generator().manual_seed(seed)).to(kind),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.uint8, torch.int64, torch.float32]),
    st.integers(0, 9),
)
VALUES = st.one_of(TENSORS, st.integers(), st.text(max_size=3))


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["image", "tokens", "id"]), VALUES), min_size=1, max_size=4))
def test_records_come_back_whatever_is_in_them(records):
    returned = pickle.loads(pickle.dumps(StackedBatch.of(records))).records()
    assert len(returned) == len(records)
    for before, after in zip(records, returned, strict=True):
        assert set(before) == set(after)
        for key, value in before.items():
            if isinstance(value, torch.Tensor):
                assert after[key].dtype == value.dtype
                assert torch.equal(after[key], value)
            else:
                assert after[key] == value


def test_what_has_one_shape_is_one_tensor():
    records = [{"image": torch.zeros(3, 4, 4 + i), "tokens": torch.full((77,), i), "id": i} for i in range(3)]
    stacked = StackedBatch.of(records)
    assert {key: value.shape for key, value in stacked.tensors.items()} == {"tokens": (3, 77)}
    assert [set(record) for record in stacked.rest] == [{"image", "id"}] * 3
