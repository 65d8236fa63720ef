"""The page of `regionclip demo`: an image, words, thresholds, and example boxes, with Gradio."""

from __future__ import annotations

import html
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from regionclip import Detections, Example, RegionCLIP
from regionclip.data.images import UnreadableImageError, read_image
from regionclip.errors import UserError
from regionclip.inference.encoded_image import EncodedImage, image_key
from regionclip.inference.vocabularies import split_words

CACHED_IMAGES = 8
"""Images whose encoding is kept, of all users."""

TOPK = 25

MARK = "#e11d48"
"""Color of a box that is being drawn."""

HEADER = """# regionclip
Find objects by the words you type. New words on the same image are answered at once: the image is not encoded again."""

HOW_TO_DRAW = "No word for it? Name it here, then click two corners of it in the image."

Corner = tuple[int, int]
"""x y in pixels of the image."""


@dataclass(frozen=True)
class Found:
    """An answer for the page."""

    drawn: Image.Image
    table: str
    """HTML: word, score, and box of each detection."""
    note: str
    """Times, and warnings."""


@dataclass
class DemoDetector:
    """Detectors by name, loaded when they are chosen; one request at a time computes."""

    load: Callable[[str], RegionCLIP]
    loaded: dict[str, RegionCLIP] = field(default_factory=dict)
    images: OrderedDict[tuple[str, str], EncodedImage] = field(default_factory=OrderedDict)
    """Encoded images by detector and `image_key`, the newest last."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def detect(
        self, model: str, image: NDArray[np.uint8], words: str, threshold: float, examples: dict[str, list[Example]]
    ) -> Found:
        """Detect in an image [H, W, 3] in RGB.

        Raises:
            UserError: no words and no examples, or invalid ones.
        """
        with self.lock:
            detector = self._detector(model)
            start = time.perf_counter()
            names = [group for group in split_words(words) if any(group)] if words.strip() else []
            detector.set_vocabulary(names, examples=dict(examples) or None)
            of_words = time.perf_counter() - start
            encoded, of_image = self._encoded(model, detector, image)
            detector.set_image(encoded)
            start = time.perf_counter()
            found = detector.predict(threshold=threshold, topk=TOPK)
            of_boxes = time.perf_counter() - start
        state = "kept from before" if of_image is None else f"encoded in {1000 * of_image:.0f} ms"
        times = f"Image {state}; words in {1000 * of_words:.0f} ms; detected in {1000 * of_boxes:.0f} ms."
        return Found(found.draw(), _table(found), " ".join([times, *(f"Warning: {text}" for text in found.warnings)]))

    def _detector(self, model: str) -> RegionCLIP:
        if model not in self.loaded:
            self.loaded[model] = self.load(model)
        return self.loaded[model]

    def _encoded(self, model: str, detector: RegionCLIP, image: NDArray[np.uint8]) -> tuple[EncodedImage, float | None]:
        """Return the encoded image, and the seconds that its encoding took; None if it was kept."""
        key = model, image_key(image)
        if key in self.images:
            self.images.move_to_end(key)
            return self.images[key], None
        start = time.perf_counter()
        self.images[key] = encoded = detector.prepare_image(image)
        EncodedImage.encode_together([encoded])
        while len(self.images) > CACHED_IMAGES:
            self.images.popitem(last=False)
        return encoded, time.perf_counter() - start


def _table(found: Detections) -> str:
    """Return an HTML table of the detections, with boxes in pixels."""
    boxes = found.boxes.round().astype(int).tolist()
    lines = [
        f"<tr><td>{html.escape(name)}</td><td>{score:.2f}</td>{''.join(f'<td>{edge}</td>' for edge in box)}</tr>"
        for name, score, box in zip(found.names, found.scores.tolist(), boxes, strict=True)
    ]
    head = "".join(f"<th>{name}</th>" for name in ("word", "score", "x1", "y1", "x2", "y2"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def build_page(detector: DemoDetector, models: Sequence[str], samples: Sequence[Path], words: str) -> gradio.Blocks:
    """Return the page.

    Args:
        detector: answers.
        models: names that can be chosen, the first is the default.
        samples: images of the gallery.
        words: in the text box at the start.
    """
    actions = _Actions(detector)
    with gradio.Blocks(title="regionclip", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gradio.Markdown(HEADER)
        examples, corner = gradio.State({}), gradio.State(None)
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(label="Image", type="filepath", sources=["upload", "clipboard"], elem_id="image")
                gradio.Examples([[str(path)] for path in samples], image, label="Samples")
                typed = gradio.Textbox(words, label="Words, with commas; | separates synonyms", elem_id="words")
                threshold = gradio.Slider(0.0, 1.0, 0.3, step=0.01, label="Minimum score", elem_id="threshold")
                model = gradio.Dropdown(list(models), value=models[0], label="Detector", elem_id="model")
                name = gradio.Textbox("", label=HOW_TO_DRAW, elem_id="example")
                shown = gradio.Markdown("", elem_id="examples")
                forget = gradio.Button("Forget examples", size="sm")
            with gradio.Column():
                drawn = gradio.Image(label="Detections", type="pil", format="png", interactive=False, elem_id="drawn")
                note = gradio.Markdown("", elem_id="note")
                table = gradio.HTML("", elem_id="table")
        inputs, outputs = [image, typed, threshold, model, examples], [drawn, table, note]
        options: dict[str, Any] = {"show_progress": "minimal", "concurrency_limit": None}
        # One listener, so that answers come in order; a change while one is pending is answered after it, not dropped.
        changes = [image.change, typed.submit, typed.blur, threshold.release, model.change]
        gradio.on(changes, actions.detect, inputs, outputs, trigger_mode="always_last", **options)
        image.change(lambda: None, None, corner)  # a corner in another image is none in this one
        click = image.select(actions.click, [image, name, examples, corner], [examples, corner, drawn, shown])
        click.then(actions.detect, inputs, outputs, **options)
        forget.click(actions.forget, None, [examples, corner, shown]).then(actions.detect, inputs, outputs, **options)
    return page


class _Actions:
    """What the page does on each event; the state of a user is passed in and out."""

    def __init__(self, detector: DemoDetector) -> None:
        self.detector = detector

    def detect(
        self, image: str | None, words: str, threshold: float, model: str, examples: dict[str, list[Example]]
    ) -> tuple[Any, Any, str]:
        """Return the drawn image, the table and the note."""
        if not image or not (words.strip() or examples):
            return None, "", "Choose an image, and type words."
        try:
            found = self.detector.detect(model, read_image(image), words, threshold, examples)
        except UnreadableImageError as error:
            raise gradio.Error("The image cannot be decoded.", print_exception=False) from error
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from error
        return found.drawn, found.table, found.note

    def click(
        self,
        image: str,
        name: str,
        examples: dict[str, list[Example]],
        corner: Corner | None,
        event: gradio.SelectData,
    ) -> tuple[dict[str, list[Example]], Corner | None, Any, str]:
        """Note the first corner of an example's box, or make a class of it with the second."""
        x, y = (int(value) for value in event.index)
        if not name.strip():
            raise gradio.Error("Name the object first.", print_exception=False)
        if corner is None:
            return examples, (x, y), _marked(image, (x, y)), "Click the opposite corner."
        left, right = sorted((x, corner[0]))
        top, bottom = sorted((y, corner[1]))
        if right - left < 2 or bottom - top < 2:
            raise gradio.Error("Click two different corners.", print_exception=False)
        kept = {**examples, name: [*examples.get(name, []), Example(image, (left, top, right, bottom))]}
        lines = ", ".join(f"{word} ({len(boxes)})" for word, boxes in kept.items())
        return kept, None, None, f"Examples: {lines}"

    def forget(self) -> tuple[dict[str, list[Example]], None, str]:
        """Return the state without examples."""
        return {}, None, ""


def _marked(image: str, corner: Corner) -> Image.Image:
    """Return the image with a cross at a corner."""
    scene = Image.fromarray(read_image(image))
    pen, (x, y), arm = ImageDraw.Draw(scene), corner, max(min(scene.size) // 30, 4)
    pen.line([(x - arm, y), (x + arm, y)], fill=MARK, width=2)
    pen.line([(x, y - arm), (x, y + arm)], fill=MARK, width=2)
    return scene


def theme() -> Any:
    """Return a theme whose fonts are those of the system: no address outside is asked for any."""
    return gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
