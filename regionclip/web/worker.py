"""A worker process: a detector that answers jobs from a pipe."""

from __future__ import annotations

import io
import logging
import os
import signal
from collections import OrderedDict
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from PIL import Image

from regionclip import Detections, RegionCLIP, Vocabulary
from regionclip.data.images import UnreadableImageError, decode_image
from regionclip.errors import Problem, UserError
from regionclip.inference.encoded_image import EncodedImage
from regionclip.web.jobs import FAILED, TOO_LARGE, UNUSABLE, Answer, Job, WorkerSettings, refusal

logger = logging.getLogger(__name__)

FORMATS = frozenset({"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"})
"""What clients may send: Pillow starts other programs for some formats."""

CACHED_VOCABULARIES = 64
"""Vocabularies whose embeddings a worker keeps."""


def run_worker(connection: Connection, settings: WorkerSettings) -> None:
    """Load the detector, then answer lists of jobs until the pipe closes; the first message tells what is served."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes; the server ends its workers
    if settings.threads:
        torch.set_num_threads(settings.threads)
    try:
        worker = Worker(settings)
    except UserError as error:
        connection.send(error)
        return
    connection.send(worker.description)
    while True:
        try:
            jobs = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(worker.answer(jobs))


class Worker:
    """Answers jobs with one detector."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Load the detector and the named vocabularies; raises `UserError` for what cannot be loaded."""
        self.settings = settings
        self.detector = RegionCLIP.from_pretrained(settings.model, device=settings.device, **settings.options)
        self._vocabularies: OrderedDict[tuple[Any, ...], Vocabulary] = OrderedDict()
        self._named = {name: self.detector.set_vocabulary(file) for name, file in settings.vocabularies.items()}
        self._embeds_words = self._without_disk_cache()
        Image.MAX_IMAGE_PIXELS = settings.max_pixels  # of this process, as are the formats
        Image.init()
        for name in set(Image.OPEN) - FORMATS:
            Image.OPEN.pop(name)
            Image.ID.remove(name)

    def _without_disk_cache(self) -> bool:
        """Keep the words of clients off the disk; return whether there is a text encoder at all."""
        try:
            self.detector.embedder.cache = None
        except UserError:
            return False
        return True

    @property
    def description(self) -> dict[str, Any]:
        """What clients may know of the detector."""
        known = self.detector.model.known_names
        return {
            "model": os.path.basename(os.path.normpath(self.settings.model)),  # noqa: PTH119 - a name, not a path
            "device": str(self.detector.model.device),
            "dim": self.detector.model.text_space.dim,
            "vocabularies": {name: len(vocabulary) for name, vocabulary in self._named.items()},
            "known_words": None if known is None else list(known),
        }

    def answer(self, jobs: Sequence[Job]) -> list[Answer]:
        """Return the answer to each job; images of a batch are encoded together."""
        prepared = [self._prepare(job) for job in jobs]
        images = [image for image in prepared if isinstance(image, EncodedImage)]
        if len(images) > 1:
            EncodedImage.encode_together(images)
        return [
            image if isinstance(image, Answer) else self._guarded(job, image)
            for job, image in zip(jobs, prepared, strict=True)
        ]

    def _prepare(self, job: Job) -> EncodedImage | Answer | None:
        """Return the decoded image of a job, None without image, or a refusal."""
        if not job.image:
            return None
        try:
            with Image.open(io.BytesIO(job.image)) as header:
                width, height = header.size
            if width * height > self.settings.max_pixels:
                return self._too_many_pixels(f"{width} x {height}")
            return self.detector.prepare_image(decode_image(io.BytesIO(job.image)).pixels)
        except Image.DecompressionBombError:
            return self._too_many_pixels("more")
        except (UnreadableImageError, OSError, SyntaxError, ValueError) as error:
            logger.info("An image cannot be decoded: %s", error)
            return refusal(UNUSABLE, "image", "a file that can be decoded", "another", "send JPEG, PNG or WebP")

    def _too_many_pixels(self, actual: str) -> Answer:
        expected = f"at most {self.settings.max_pixels} pixels"
        return refusal(TOO_LARGE, "image", expected, actual, "send a smaller image")

    def _guarded(self, job: Job, image: EncodedImage | None) -> Answer:
        try:
            return Answer(self._embed(job, image) if job.kind == "embed" else self._detect(job, image))
        except UserError as error:
            return Answer(
                None, UNUSABLE, error.problems[0] if error.problems else Problem("request", "", str(error), "")
            )
        except Exception:
            # One request must not end the others; its cause is for the operator, not for the client.
            logger.exception("A job failed")
            return refusal(
                FAILED, "server", "a result", "an internal error", "tell the operator, who has it in the log"
            )

    def _detect(self, job: Job, image: EncodedImage | None) -> dict[str, Any]:
        if image is None:
            raise UserError([Problem("image", "a file", "none", "send one")])
        self._set_vocabulary(job)
        self.detector.set_image(image)
        found = self.detector.predict(
            None if job.boxes is None else np.asarray(job.boxes, np.float32).reshape(-1, 4),
            threshold=job.threshold,
            topk=job.topk,
            words_per_box=job.words_per_box,
            per_class=job.per_class,
        )
        return {
            "width": found.image_size[1],
            "height": found.image_size[0],
            "detections": [_as_entry(found, row) for row in range(len(found))],
            "warnings": list(found.warnings),
        }

    def _embed(self, job: Job, image: EncodedImage | None) -> dict[str, Any]:
        """Return unit embeddings: of words, or of boxes of an image."""
        if image is None:
            vocabulary = self._vocabulary(job)
            rows = vocabulary.class_embeddings()
            return {"names": list(vocabulary.names), "embeddings": rows.cpu().tolist()}
        known = self.detector.model.known_names
        self._set_vocabulary(job, default=(known[0] if known else "object",))
        self.detector.set_image(image)
        height, width = image.size
        boxes = job.boxes if job.boxes is not None else ((0.0, 0.0, float(width), float(height)),)
        wanted = np.asarray(boxes, np.float32).reshape(-1, 4)
        regions = self.detector.predict(wanted, embeddings=True, threshold=-1.0).embeddings
        rows = torch.nn.functional.normalize(torch.from_numpy(np.asarray(regions)), dim=1)
        return {"boxes": [list(map(float, box)) for box in boxes], "embeddings": rows.tolist()}

    def _set_vocabulary(self, job: Job, default: tuple[str, ...] = ()) -> None:
        vocabulary = self._vocabulary(job, default)
        if job.use_background:
            self.detector.set_vocabulary(vocabulary)
        else:
            self.detector.set_vocabulary(vocabulary, background=None)

    def _vocabulary(self, job: Job, default: tuple[str, ...] = ()) -> Vocabulary:
        if job.vocabulary:
            if job.vocabulary not in self._named:
                known = ", ".join(self._named) or "none on this server"
                raise UserError([Problem("vocabulary", f"one of: {known}", job.vocabulary, "name one, or send words")])
            return self._named[job.vocabulary]
        key = job.words or (default,)
        if not any(key):
            raise UserError([Problem("words", "at least one", "none", 'send words such as ["cat", "dog"]')])
        if not self._embeds_words and not default:
            fix = "name a vocabulary"
            raise UserError([Problem("words", "a vocabulary: this detector has no text encoder", "words", fix)])
        if key not in self._vocabularies:
            self._vocabularies[key] = self.detector.set_vocabulary([list(group) for group in key], background=None)
            while len(self._vocabularies) > CACHED_VOCABULARIES:
                self._vocabularies.popitem(last=False)
        self._vocabularies.move_to_end(key)
        return self._vocabularies[key]


def _as_entry(found: Detections, row: int) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "box": [round(float(edge), 3) for edge in found.boxes[row]],
        "word": found.names[row],
        "class_id": int(found.class_ids[row]),
        "score": float(found.scores[row]),
    }
    if words := found.top_words(row):
        entry["top_words"] = [[name, score] for name, score in words]
    return entry
