#!/usr/bin/env python3
"""Print the metrics of the synthetic dataset's recipe and its ablations as tables for docs/emoji_ovd.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from tabulate import tabulate

from regionclip.engine.command import DONE, run_command
from regionclip.errors import user_error
from regionclip.files import read_json_file

SEEDS = ("", "_seed2", "_seed3")
ABLATIONS = {
    "whole recipe, 1500 steps": "pretrain",
    "whole recipe, 500 steps": "short",
    "without distillation": "without_distillation",
    "without contrast": "without_contrast",
    "without the loss on images and captions": "without_captions",
    "teacher pools from the map, as published": "aligned_teacher",
    "random boxes": "random_boxes",
    "a quarter of the concepts": "quarter_pool",
}


class Metrics:
    """Metrics written by the stages under a folder."""

    def __init__(self, folder: Path) -> None:
        """Store the folder; nothing is read yet."""
        self.folder = folder

    def of(self, stage: str, name: str, task: str = "bbox") -> float | None:
        """Return a metric in percent; None if the stage was not run."""
        content = read_json_file(self.folder / stage / "inference" / "metrics.json")
        value = content["metrics"][task].get(name) if content else None
        return None if value is None else float(value)

    def text(self, stages: Sequence[str], name: str, task: str = "bbox") -> str:
        """Return the mean over stages that were run, with minimum and maximum if there are several."""
        values = [value for stage in stages if (value := self.of(stage, name, task)) is not None]
        if not values:
            return "not run"
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        return f"{mean(values):.1f}{spread}"


def seeds(stage: str) -> list[str]:
    """Return the names of a stage for each seed."""
    return [stage + seed for seed in SEEDS]


def claims(metrics: Metrics) -> str:
    """Return the table of zero-shot detection, proposals and transfer learning."""
    rows = []
    for what, boxes, name in (
        ("ground-truth boxes, AP", "gt", "AP"),
        ("ground-truth boxes, AP50, novel", "gt", "AP50-novel"),
        ("proposals, AP50", "rpn", "AP50"),
        ("proposals, AP50, novel", "rpn", "AP50-novel"),
        ("proposals, AP50, base", "rpn", "AP50-base"),
    ):
        teacher = metrics.text([f"zero_shot_{boxes}_clip"], name)
        student = metrics.text(seeds(f"zero_shot_{boxes}_pretrain"), name)
        style = [metrics.text([f"style_{boxes}_{stage}"], name) for stage in ("clip", "pretrain")]
        rows.append([f"zero-shot, {what}", teacher, student, *style])
    for name in ("AP50-novel", "AP50-base", "AP50"):
        cells = [metrics.text(seeds(f"transfer_{stage}"), name) for stage in ("clip", "pretrain")]
        tuned_style = metrics.text(["style_rpn_transfer_pretrain"], name)
        rows.append([f"fine-tuned on base boxes, {name}", *cells, "", tuned_style])
    headers = ["", "from CLIP", "from the pretrained student", "Fluent 3D, CLIP", "Fluent 3D, student"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def proposals(metrics: Metrics) -> str:
    """Return the table of RPN recall."""
    names = [f"AR@{limit}{group}" for group in ("", "-base", "-novel") for limit in (10, 100)]
    rows = [[name, metrics.text(["rpn"], name, "proposals")] for name in names]
    return tabulate(rows, headers=["proposals", "percent"], tablefmt="github", disable_numparse=True)


def ablations(metrics: Metrics) -> str:
    """Return the table of ablations: pretraining without one part."""
    rows = [
        [what, metrics.text([f"zero_shot_gt_{stage}"], "AP"), metrics.text([f"zero_shot_rpn_{stage}"], "AP50")]
        for what, stage in (("no pretraining (CLIP)", "clip"), *ABLATIONS.items())
    ]
    headers = ["pretraining", "ground-truth boxes, AP", "proposals, AP50"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="output/emoji", help="of the recipe: EMOJI_OUTPUT")
    folder = Path(parser.parse_args().folder)
    if not folder.is_dir():
        raise user_error(f"--folder {folder}", "the output of tools/train_emoji.sh", "no such folder", "run that first")
    metrics = Metrics(folder)
    print("\n\n".join(table(metrics) for table in (claims, proposals, ablations)))
    return DONE


if __name__ == "__main__":
    run_command(main)
