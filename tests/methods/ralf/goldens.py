"""The numbers of RALF's published functions (goldens `o`)."""

import json

import numpy as np
import torch

from tests.helpers.paths import GOLDENS

UNITS = np.load(GOLDENS / "o_ralf.npz")
META = json.loads(str(UNITS["meta"][()]))
NAMES = [f"class {i}" for i in range(6)]
STORE_KEYS = ("feat_in", "feat_out_sim", "feat_out_dis", "pad_out_sim", "pad_out_dis")


def golden(key):
    return torch.from_numpy(UNITS[key])


def assert_close(actual, key, tolerance):
    expected = golden(key)
    assert actual.shape == expected.shape
    assert float((actual.detach().double() - expected.double()).abs().max()) <= tolerance


def drawn():
    return {side: golden(f"ral/{side}_index") for side in ("hard", "easy")}
