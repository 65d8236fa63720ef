"""Model cards in the hub's format, from the output of evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from tabulate import tabulate

from regionclip.clip.vocabulary import Vocabulary
from regionclip.config.resolve import clip_architecture
from regionclip.errors import user_error
from regionclip.files import read_json_file
from regionclip.method import method_of

CARD_FILE = "README.md"

FIX = "name the metrics.json that an evaluation wrote (`regionclip eval`)"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation wrote to `metrics.json`."""

    protocol: str
    """Dataset, classes, boxes, suppression."""
    images: int
    metrics: dict[str, dict[str, float | None]]
    """By task, in percent."""

    @property
    def dataset(self) -> str:
        """Name of the dataset, the first part of the protocol."""
        return self.protocol.split(";")[0]


def read_evaluation(path: Path) -> Evaluation:
    """Read the `metrics.json` of an evaluation; raises `UserError` for anything else."""
    content = read_json_file(path)
    keys = ("protocol", "images", "metrics")
    if content is None or not all(key in content for key in keys) or not content["metrics"]:
        actual = "no such file" if not path.is_file() else "another file, or an evaluation without annotations"
        raise user_error(str(path), "the metrics of an evaluation", actual, FIX)
    return Evaluation(*(content[key] for key in keys))


def model_card(
    name: str,
    cfg: CfgNode,
    evaluations: Sequence[Evaluation],
    vocabulary: Vocabulary | None,
    license_name: str,
    notes: str = "",
) -> str:
    """Return a model card: the hub's metadata, how to use the detector, and how it was evaluated.

    Args:
        name: of the detector, for the title and the example.
        cfg: its config.
        evaluations: of this detector.
        vocabulary: its default one.
        license_name: SPDX identifier of the weights; empty leaves it out.
        notes: Markdown to append.
    """
    method = method_of(cfg)
    paper = f"[{method.title}]({method.paper})" if method else "a detector"
    clip = clip_architecture(cfg)
    words = f"Its default vocabulary has {len(vocabulary)} names; any others can be given.\n" if vocabulary else ""
    drawings = cfg.INPUT.DOMAIN == "drawings"
    limits = "It was trained on drawings and knows nothing of photographs.\n" if drawings else ""
    results = "\n".join(_section(evaluation) for evaluation in evaluations) or "Not evaluated.\n"
    appended = f"\n{notes.strip()}\n" if notes.strip() else ""
    return f"""---
{_metadata(name, evaluations, license_name)}---

# {name}

An open-vocabulary object detector for the Python package `regionclip`: {paper}, with CLIP {clip.name}.
It finds objects by the names that you give.
{words}{limits}
```python
from regionclip import RegionCLIP

detector = RegionCLIP.from_pretrained("{name}")
detector.set_image("photo.jpg")
detector.set_vocabulary(["cat", "dog", "traffic cone"])
print(detector.predict())
```

## Evaluation

{results}{appended}"""


def _section(evaluation: Evaluation) -> str:
    """Return the protocol, and a table of the metrics without those of single classes."""
    columns = dict.fromkeys(
        key for scores in evaluation.metrics.values() for key in scores if not key.startswith("AP-")
    )
    rows = [[task, *(scores.get(key) for key in columns)] for task, scores in evaluation.metrics.items()]
    table = tabulate(rows, headers=["percent", *columns], tablefmt="github", floatfmt=".1f", missingval="")
    return f"{evaluation.images} images. {evaluation.protocol}\n\n{table}\n"


def _metadata(name: str, evaluations: Sequence[Evaluation], license_name: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult("object-detection", evaluation.dataset, evaluation.dataset, f"{task} {key}", value)
        for evaluation in evaluations
        for task, scores in evaluation.metrics.items()
        for key, value in scores.items()
        if value is not None and not key.startswith("AP-")
    ]
    known: dict[str, Any] = {"eval_results": results, "model_name": name} if results else {}
    data = ModelCardData(
        license=license_name.lower() or None,
        library_name="regionclip",
        pipeline_tag="zero-shot-object-detection",
        tags=["object-detection", "open-vocabulary", "clip"],
        **known,
    )
    return f"{data.to_yaml()}\n"
