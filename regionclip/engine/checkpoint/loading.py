"""Loading weights into a model, with a report of the matches and an error for uncovered parts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import Tensor, nn

from regionclip.config.keys import get_value
from regionclip.engine.checkpoint.layouts.published import rename_for_model, weight_slots
from regionclip.engine.checkpoint.reading import read_checkpoint
from regionclip.errors import Problem, UserError

logger = logging.getLogger(__name__)


@dataclass
class LoadReport:
    """What happened to every entry of the files and of the model."""

    model_keys: tuple[str, ...]
    matched: set[str] = field(default_factory=set)
    unexpected: set[str] = field(default_factory=set)
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """Maps keys to (shape in the file, shape in the model); such entries are not loaded."""
    configured: frozenset[str] = frozenset()
    """Entries set by the config, such as class embeddings; they override the files."""
    optional: frozenset[str] = frozenset()
    """Entries that the configured model works without."""

    @property
    def missing(self) -> list[str]:
        """Entries of the model set neither by a file nor by the config."""
        return [key for key in self.model_keys if key not in self.matched and key not in self.configured]

    @property
    def uncovered(self) -> list[str]:
        """Missing entries that the configured model needs."""
        return [key for key in self.missing if key not in self.optional]

    def forget(self, prefix: str) -> None:
        """Discard the matches under `prefix`, as if no file had been read."""
        self.matched = {key for key in self.matched if not key.startswith(prefix)}
        self.unexpected = {key for key in self.unexpected if not key.startswith(prefix)}
        self.reshaped = {key: shapes for key, shapes in self.reshaped.items() if not key.startswith(prefix)}

    def table(self) -> str:
        """Return a text table: per prefix, the number of matched, missing, unexpected and reshaped entries."""
        columns: dict[str, Iterable[str]] = {
            "matched": self.matched,
            "from config": self.configured,
            "missing": self.missing,
            "unexpected": self.unexpected - self.reshaped.keys(),
            "wrong shape": self.reshaped,
        }
        counts = {name: Counter(part_of(key) for key in keys) for name, keys in columns.items()}
        parts = sorted(set().union(*counts.values()))
        rows = [[part, *(count[part] or "" for count in counts.values())] for part in parts]
        return tabulate(rows, headers=["weights", *columns], tablefmt="simple")


def load_weights(
    model: nn.Module,
    weights: str,
    slots: Mapping[str, str] | None = None,
    *,
    trust_pickle: bool = False,
    allow_missing: Sequence[str] = (),
    required: Sequence[str] = ("",),
    averaged: bool = True,
) -> LoadReport:
    """Load the detector's weights, then those of parts with their own files, and check that the model is covered.

    Class embeddings from the config are kept. Entries are copied one by one, so nothing else
    changes, in particular no BatchNorm statistics of other parts.

    Args:
        model: built from the config.
        weights: MODEL.WEIGHTS; empty loads nothing.
        slots: files of further parts by the name of their `WeightSlot`: `{"rpn": "rpn_coco_48.pth"}`. Such a part comes
            from its file entirely, whatever the first one contained.
        trust_pickle: allow files that run code.
        allow_missing: key prefixes that may stay without weights.
        required: key prefixes that need weights; training needs fewer than inference.
        averaged: take the averaged weights of a run with MODEL_EMA; a resumed run has both.

    Raises:
        UserError: a file cannot be read, or a part that the config needs is in no file.
    """
    entries = model.state_dict()
    report = _new_report(model, entries)
    files = []
    if weights:
        content = read_checkpoint(weights, trust_pickle=trust_pickle, averaged=averaged)
        _copy(rename_for_model(weights, content.state, entries), entries, report)
        files.append(weights)
    for slot in weight_slots():
        path = (slots or {}).get(slot.name)
        if path:
            content = read_checkpoint(path, trust_pickle=trust_pickle)
            report.forget(slot.prefix)
            _copy(slot.rename(path, content.state, entries), entries, report)
            files.append(path)
    troubled = report.reshaped or _uncovered(report, allow_missing, required)
    level = logging.WARNING if troubled else logging.INFO
    logger.log(level, "Weights from %s:\n%s", " and ".join(files) or "no file", report.table())
    require_coverage(report, files, allow_missing, required)
    return report


def weight_files(cfg: CfgNode) -> dict[str, str]:
    """Return the files that a config names for the weight slots of its model, by slot."""
    files = {slot.name: get_value(cfg, slot.key) for slot in weight_slots() if slot.is_used(cfg)}
    return {name: file for name, file in files.items() if file}


def parts_with_weights(cfg: CfgNode, model: nn.Module) -> tuple[str, ...]:
    """Return the key prefixes that need weights before training: frozen parts and, with MODEL.WEIGHTS, the backbone.

    New heads, and the pyramid on a backbone, are trained from scratch.
    """
    slots = (slot.prefix for slot in weight_slots() if slot.is_used(cfg))
    frozen = (*slots, *getattr(model, "frozen_parts", ()))
    has_pyramid = hasattr(getattr(model, "backbone", None), "bottom_up")
    return (*frozen, "backbone.bottom_up." if has_pyramid else "backbone.") if cfg.MODEL.WEIGHTS else frozen


def require_coverage(
    report: LoadReport, files: Sequence[str], allow_missing: Sequence[str], required: Sequence[str] = ("",)
) -> None:
    """Raise a `UserError` listing parts under the required prefixes without weights, except the allowed ones."""
    keys = _uncovered(report, allow_missing, required)
    parts = Counter(part_of(key) for key in keys)
    if not parts:
        return
    totals = Counter(part_of(key) for key in report.model_keys)
    problems = []
    for part, count in parts.items():
        wrong = next((key for key in keys if part_of(key) == part and key in report.reshaped), None)
        actual = f"{count} of {totals[part]} entries in no file ({' and '.join(files) or 'none given'})"
        if wrong:
            found, wanted = report.reshaped[wrong]
            actual += f"; {wrong} has shape {list(found)}, the model needs {list(wanted)}"
        problems.append(Problem(f"weights of {part}", "in the checkpoint", actual, _fix(part)))
    raise UserError(problems)


def _uncovered(report: LoadReport, allow_missing: Sequence[str], required: Sequence[str]) -> list[str]:
    needed = [key for key in report.uncovered if key.startswith(tuple(required))]
    return [key for key in needed if not key.startswith(tuple(allow_missing))]


def part_of(key: str) -> str:
    """Return the part of a model that a key belongs to, for reports."""
    names = key.split(".")
    if names[0] == "roi_heads":
        return ".".join(names[:3] if names[1] == "box_predictor" else names[:2])
    return ".".join(names[:2]) if names[1:2] == ["attnpool"] or names[0] == "raf" else names[0]


def _fix(part: str) -> str:
    source = "MODEL.CLIP.TEXT_EMB_PATH" if part.endswith("cls_score") else "MODEL.WEIGHTS"
    source = next((slot.key for slot in weight_slots() if f"{part}.".startswith(slot.prefix)), source)
    return f"name a file that has them in {source}, or accept random values with --allow-missing {part}"


def _new_report(model: nn.Module, entries: dict[str, Tensor]) -> LoadReport:
    optional = {key for key in entries if key.endswith("num_batches_tracked")}
    return LoadReport(
        tuple(entries),
        configured=frozenset(declared_weights(model, "configured_weights")),
        optional=frozenset(optional | declared_weights(model, "optional_weights")),
    )


def declared_weights(model: nn.Module, attribute: str) -> set[str]:
    """Return the keys that modules declare in their `attribute`."""
    return {f"{prefix}.{name}" for prefix, module in model.named_modules() for name in getattr(module, attribute, ())}


@torch.no_grad()
def _copy(state: dict[str, Tensor], entries: dict[str, Tensor], report: LoadReport) -> None:
    for key, value in state.items():
        if key in report.configured:
            continue
        if key not in entries:
            report.unexpected.add(key)
        elif entries[key].shape != value.shape:
            report.reshaped[key] = (tuple(value.shape), tuple(entries[key].shape))
        else:
            entries[key].copy_(value)
            report.matched.add(key)
