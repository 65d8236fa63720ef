"""The endless order of training images, the same for any number of processes, from any place on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data.samplers import RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler
from torch.utils.data import Sampler

from regionclip.errors import user_error

SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler")
"""Values of DATALOADER.SAMPLER_TRAIN."""


class Draw(NamedTuple):
    """One image of the endless order."""

    position: int
    """Place in the order, from 0."""
    image: int
    """Number of the image in the dataset."""


def endless_order(cfg: CfgNode, records: Sequence[dict[str, Any]], seed: int) -> Iterable[int]:
    """Return the endless order of image numbers that DATALOADER.SAMPLER_TRAIN asks for.

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
    # Detectron2's samplers deal the order out to processes one by one; here whole batches are dealt.
    return sampler._infinite_indices()


class TrainingBatches(Sampler[list[Draw]]):
    """The share of one process of each batch, of images that all lie or all stand.

    Batches are formed over all processes before they are dealt out, so the number of processes does
    not change them, and a run can begin with any batch.
    """

    def __init__(
        self,
        order: Iterable[int],
        batch_size: int,
        *,
        lying: Sequence[bool] | None = None,
        rank: int = 0,
        world_size: int = 1,
        first_batch: int = 0,
    ) -> None:
        """Make the batches of one process.

        Args:
            order: endless image numbers.
            batch_size: images of a batch over all processes; a multiple of `world_size`.
            lying: for each image whether it is wider than high; None mixes them.
            rank: number of this process.
            world_size: number of processes.
            first_batch: batches to leave out.
        """
        self.order = order
        self.batch_size = batch_size
        self.lying = lying
        self.rank = rank
        self.world_size = world_size
        self.first_batch = first_batch

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yield the batches without end; to be called once."""
        for batch in itertools.islice(self._batches(), self.first_batch, None):
            yield batch[self.rank :: self.world_size]

    def _batches(self) -> Iterator[list[Draw]]:
        groups: dict[bool, list[Draw]] = {True: [], False: []}
        for position, index in enumerate(self.order):
            group = groups[self.lying is None or self.lying[index]]
            group.append(Draw(position, index))
            if len(group) == self.batch_size:
                yield list(group)
                group.clear()
