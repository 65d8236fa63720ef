"""Endless order of training images, independent of the number of processes, with random access by batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data.samplers import RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler
from torch.utils.data import Sampler

from regionclip.errors import user_error
from regionclip.records import Record

SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler")
"""Values of DATALOADER.SAMPLER_TRAIN."""


class Draw(NamedTuple):
    """One sample of the endless order."""

    position: int
    """Sample index in the order, from 0."""
    image: int
    """Index of the image in the dataset."""


def endless_order(cfg: CfgNode, records: Sequence[Record], seed: int) -> Iterable[int]:
    """Return the endless order of image indices of DATALOADER.SAMPLER_TRAIN.

    Raises:
        UserError: unknown sampler.
    """
    name, node = cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER
    sampler: TrainingSampler | RepeatFactorTrainingSampler
    if name == "TrainingSampler":
        sampler = TrainingSampler(len(records), seed=seed)
    elif name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            records, node.REPEAT_THRESHOLD, sqrt=node.REPEAT_SQRT
        )
        sampler = RepeatFactorTrainingSampler(factors, seed=seed)
    elif name == "RandomSubsetTrainingSampler":
        ratio = node.RANDOM_SUBSET_RATIO
        sampler = RandomSubsetTrainingSampler(len(records), ratio, seed_shuffle=seed, seed_subset=seed)
    else:
        raise user_error("DATALOADER.SAMPLER_TRAIN", " or ".join(SAMPLERS), repr(name), "choose one of them")
    # Detectron2's samplers distribute single images over processes; here whole batches are distributed.
    return sampler._infinite_indices()


class TrainingBatches(Sampler[list[Draw]]):
    """One process's share of each batch, of either landscape or portrait images.

    Batches are formed over all processes before they are distributed, so they do not depend on the
    number of processes, and a run can start with any batch.
    """

    def __init__(
        self,
        order: Iterable[int],
        batch_size: int,
        *,
        landscape: Sequence[bool] | None = None,
        rank: int = 0,
        world_size: int = 1,
        first_batch: int = 0,
    ) -> None:
        """Create the batches of one process.

        Args:
            order: endless image indices.
            batch_size: images per batch over all processes; a multiple of `world_size`.
            landscape: for each image whether it is landscape (wider than high); None mixes both.
            rank: index of this process.
            world_size: number of processes.
            first_batch: number of batches to skip.
        """
        self.order = order
        self.batch_size = batch_size
        self.landscape = landscape
        self.rank = rank
        self.world_size = world_size
        self.first_batch = first_batch

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yield batches endlessly; call only once."""
        for batch in itertools.islice(self._batches(), self.first_batch, None):
            yield batch[self.rank :: self.world_size]

    def _batches(self) -> Iterator[list[Draw]]:
        groups: dict[bool, list[Draw]] = {True: [], False: []}
        for position, index in enumerate(self.order):
            group = groups[self.landscape is None or self.landscape[index]]
            group.append(Draw(position, index))
            if len(group) == self.batch_size:
                yield list(group)
                group.clear()
