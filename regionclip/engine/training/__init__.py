"""Training: the loop, what happens between its steps, and what a resumed run needs."""

from regionclip.engine.training.trainer import DetectorTrainer, TrainingReport

__all__ = ["DetectorTrainer", "TrainingReport"]
