"""Golden values of the published system on the device in float32, and deviations of half precision from float32."""

from __future__ import annotations

import argparse

from precision import compare

from gpu import tests
from gpu.step import Notes, Setting

MODELS = ("emoji", "RN50")


def work(setting: Setting, notes: Notes) -> None:
    """Record deviations, then run the golden tests; raises `RuntimeError` if one fails."""
    images, proposals = (1, 20) if setting.is_dry_run else (4, 300)
    for precision in ("float16", "bfloat16"):
        for model in MODELS[:1] if setting.is_dry_run else MODELS:
            notes[f"{model} {precision}"] = compare(
                argparse.Namespace(
                    model=model,
                    precision=precision,
                    first_stage="res5",
                    proposals=proposals,
                    images=images,
                    folder=None,
                    device=setting.device,
                )
            )
    chosen = "test_region_features_agree and 460229" if setting.is_dry_run else tests.GOLDENS
    tests.run(notes, setting.device, "tests/parity/test_goldens.py", "-k", chosen)
