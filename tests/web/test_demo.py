"""The page of the demo in a real browser: Chromium without a window."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regionclip import RegionCLIP
from regionclip.drawing import color_of
from tests.helpers.paths import REPOSITORY

gradio = pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

from regionclip.web.demo import DemoDetector, build_page, theme  # noqa: E402 - needs Gradio

SCENES = REPOSITORY / "datasets" / "demo_scenes"
SCENE = SCENES / "000243.jpg"
MODEL = "emoji"


@pytest.fixture(scope="module")
def detector():
    return RegionCLIP.from_pretrained(MODEL, device="cpu")


@pytest.fixture(scope="module")
def address(detector):
    demo = DemoDetector(lambda name: RegionCLIP.from_pretrained(name, device="cpu"), {MODEL: detector})
    page = build_page(demo, [MODEL], sorted(SCENES.glob("*.jpg"))[:2], "carrot, wood")
    page.queue(default_concurrency_limit=None)
    _, local, _ = page.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, inbrowser=False, theme=theme()
    )
    yield local
    page.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def user(browser, address):
    """Return a function that opens the page for another user."""
    contexts = []

    def open_page():
        contexts.append(browser.new_context(viewport={"width": 1300, "height": 1400}))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        page.requested = []
        page.on("request", lambda request: page.requested.append(request.url))
        page.goto(address)
        page.wait_for_selector("#words textarea, #words input")
        return page

    yield open_page
    for context in contexts:
        context.close()


def words_box(page):
    return page.locator("#words textarea, #words input").first


def upload(page, path):
    page.locator("#image input[type=file]").first.set_input_files(str(path))


def note_with(page, text):
    page.locator("#note", has_text=text).first.wait_for()
    return page.locator("#note").inner_text()


def rows(page):
    """Return the cells of the table's rows."""
    found = page.locator("#table tbody tr").all()
    cells = [[cell.inner_text().strip() for cell in row.locator("td").all()] for row in found]
    return [[cell for cell in row if cell] for row in cells if any(row)]


def drawn(page):
    """Return the drawn image."""
    source = page.locator("#drawn img").first.get_attribute("src")
    return Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB")


def test_typed_words_are_found_and_drawn_in_the_right_place(user, detector):
    page = user()
    upload(page, SCENE)
    note_with(page, "detected in")
    page.locator("#table td", has_text="carrot").first.wait_for()
    found = [(row[0], [float(number) for number in row[1:]]) for row in rows(page)]
    detector.set_image(SCENE)
    detector.set_vocabulary(["carrot", "wood"])
    expected = detector.predict(threshold=0.3)
    assert [word for word, _ in found] == expected.names
    np.testing.assert_allclose([numbers[1:] for _, numbers in found], expected.boxes.round())
    score, *box = next(numbers for word, numbers in found if word == "carrot")
    assert score >= 0.3
    pixels = np.asarray(drawn(page)).astype(int)
    left, top, right, bottom = map(int, box)
    color = np.array([int(color_of("carrot")[i : i + 2], 16) for i in (1, 3, 5)])
    edges = np.concatenate([pixels[bottom, left:right], pixels[top:bottom, left], pixels[top:bottom, right]])
    assert np.mean(np.abs(edges - color).max(axis=1) < 60) > 0.8
    outside = [url for url in page.requested if not url.startswith(("http://127.0.0.1", "data:", "blob:"))]
    assert not outside, outside


def test_new_words_and_thresholds_keep_the_encoded_image(user):
    page = user()
    upload(page, SCENE)
    page.locator("#table td", has_text="carrot").first.wait_for()
    words_box(page).fill("telescope, carrot")
    words_box(page).press("Enter")
    assert "words in" in note_with(page, "kept from before")
    number = page.locator("#threshold input[type=number]").first
    number.fill("0.99")
    number.press("Enter")
    page.locator("#threshold input[type=range]").first.press("ArrowRight")
    page.locator("#table td", has_text="carrot").first.wait_for(state="detached")
    assert rows(page) == []


def test_a_broken_file_is_said_and_the_page_goes_on(user, tmp_path):
    page = user()
    (tmp_path / "broken.jpg").write_bytes(SCENE.read_bytes()[:200])
    upload(page, tmp_path / "broken.jpg")
    page.get_by_text("rror", exact=False).first.wait_for()
    page.reload()
    page.wait_for_selector("#words textarea, #words input")
    upload(page, SCENE)
    page.locator("#table td", has_text="carrot").first.wait_for()


def test_an_example_box_becomes_a_class(user):
    page = user()
    words_box(page).fill("wood")
    upload(page, SCENE)
    note_with(page, "detected in")
    page.locator("#example textarea, #example input").first.fill("orange root")
    image = page.locator("#image img").first
    area, (width, height) = image.bounding_box(), Image.open(SCENE).size
    scale = min(area["width"] / width, area["height"] / height)
    left, top = (area["width"] - width * scale) / 2, (area["height"] - height * scale) / 2
    for x, y in ((192, 134), (268, 205)):  # the carrot
        image.click(position={"x": left + x * scale, "y": top + y * scale})
        page.wait_for_timeout(700)
    page.locator("#examples", has_text="orange root (1)").first.wait_for()
    page.locator("#table td", has_text="orange root").first.wait_for()
    found = next([float(number) for number in row[2:]] for row in rows(page) if row[0] == "orange root")
    assert found[0] < 230 < found[2] and found[1] < 170 < found[3]


def test_two_users_at_once_see_their_own(user):
    pages = [user(), user()]
    for page, words in zip(pages, ("carrot", "wood, telescope"), strict=True):
        words_box(page).fill(words)
    for page in pages:
        upload(page, SCENE)
    pages[0].locator("#table td", has_text="carrot").first.wait_for()
    note_with(pages[1], "detected in")
    assert not {row[0] for row in rows(pages[1])} & {"carrot"}
    assert {row[0] for row in rows(pages[0])} == {"carrot"}


def test_the_page_needs_an_image_and_words(user):
    page = user()
    words_box(page).fill("")
    upload(page, Path(SCENE))
    note_with(page, "Choose an image, and type words.")
