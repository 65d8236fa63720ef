"""What a user set for the process changes nothing here, and nothing here changes what the user set."""

import contextlib
import copy
import io
import multiprocessing
import pickle
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from regionclip import RegionCLIP
from regionclip.clip.vocabulary import Vocabulary
from regionclip.isolation import own_settings
from tests.helpers.paths import DATA

PHOTO = np.asarray(Image.open(sorted((DATA / "four_photos" / "images").iterdir())[0]).convert("RGB").resize((96, 64)))


def load(folder):
    return RegionCLIP.from_pretrained(folder, overrides=["INPUT.MIN_SIZE_TEST", "48"], device="cpu")


def found(detector, words=("cat | kitten", "dog")):
    detector.set_vocabulary(list(words))
    detector.set_image(PHOTO)
    result = detector.predict(threshold=0.0, topk=5, embeddings=True)
    named = detector.predict([[5, 5, 60, 60]], embeddings=True)
    detector.forget_images()
    return result.names, result.boxes, result.scores, result.embeddings, named.scores, named.embeddings


def assert_same(one, other):
    assert one[0] == other[0] != []
    for expected, actual in zip(one[1:], other[1:], strict=True):
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def expected(detector_folder):
    return found(load(detector_folder))


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
        assert torch.get_deterministic_debug_mode() == 2
    finally:
        torch.use_deterministic_algorithms(False)


SETTINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "device": default_device,
    "with device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "deterministic": deterministic,
}


@pytest.mark.parametrize("when", ["loading", "asking"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_the_process_do_not_matter(setting, when, detector_folder, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("REGIONCLIP_CACHE", str(tmp_path))  # so that words are embedded
    detector = load(detector_folder) if when == "asking" else None
    with SETTINGS[setting]():
        detector = detector or load(detector_folder)
        assert_same(found(detector), expected)
        saved = detector.vocabulary.save(tmp_path / "words.safetensors")
        read = Vocabulary.from_file(saved)
        assert read.embeddings.dtype == torch.float32 and not read.embeddings.requires_grad
        torch.testing.assert_close(read.embeddings, detector.vocabulary.embeddings)
        detector.set_image(PHOTO)
        detector.predict(threshold=0.0)
    # What was computed under the setting serves without it.
    detector.predict([[5, 5, 60, 60]])
    assert_same(found(detector), expected)


def test_threads_do_not_spoil_the_default_type_for_each_other():
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with own_settings():
            inside.set()
            leave.wait(10)

    with default_dtype(torch.float64):
        thread = threading.Thread(target=stay)
        thread.start()
        inside.wait(10)
        with own_settings():
            leave.set()
            thread.join()
            assert torch.get_default_dtype() == torch.float32
        assert torch.get_default_dtype() == torch.float64


@pytest.mark.parametrize("words", [None, ["cat"]])
def test_detectors_can_be_copied_and_pickled(words, detector_folder, expected):
    detector = load(detector_folder)
    if words:
        detector.set_vocabulary(words)  # with the text encoder in memory
        detector.set_image(PHOTO)
        detector.predict()
    saved = io.BytesIO()
    torch.save(detector, saved)
    saved.seek(0)
    for again in (
        pickle.loads(pickle.dumps(detector)),
        copy.deepcopy(detector),
        torch.load(saved, weights_only=False),
    ):
        assert len(again.encoded_images) == len(detector.encoded_images)
        assert again.fingerprint == detector.fingerprint
        assert_same(found(again), expected)


def test_results_can_be_pickled(detector_folder):
    detector = load(detector_folder)
    detector.set_vocabulary(["cat"])
    detector.set_image(PHOTO)
    result = detector.predict(threshold=0.0)
    again = pickle.loads(pickle.dumps(result))
    assert again.to_coco() == result.to_coco()


class Detected(torch.utils.data.Dataset):
    def __init__(self, detector):
        self.detector = detector

    def __len__(self):
        return 2

    def __getitem__(self, number):
        return torch.from_numpy(found(self.detector)[2])


def test_detectors_work_in_workers_of_a_data_loader(detector_folder, expected):
    for scores in torch.utils.data.DataLoader(Detected(load(detector_folder)), batch_size=None, num_workers=1):
        np.testing.assert_allclose(scores, expected[2], rtol=1e-4, atol=1e-4)


def test_a_detector_works_after_a_fork_though_threads_were_used(detector_folder, expected):
    detector, threads = load(detector_folder), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found(detector)
        answer = multiprocessing.get_context("fork").Queue()
        process = multiprocessing.get_context("fork").Process(target=lambda: answer.put(found(detector)))
        process.start()
        try:
            assert_same(answer.get(timeout=60), expected)
        finally:
            process.kill()
            process.join()
    finally:
        torch.set_num_threads(threads)


def test_the_text_encoder_is_found_from_another_folder(detector_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("REGIONCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(detector_folder.parent)
    detector = load(detector_folder.name)
    monkeypatch.chdir(tmp_path)
    assert detector.set_vocabulary(["cat", "dog"]).names == ("cat", "dog")
