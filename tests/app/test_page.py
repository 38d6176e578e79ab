"""The page in a headless Chromium: needs Gradio, playwright and a browser, and is said to be skipped without them."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.app.browser import draw, opened
from tests.sampling.conftest import make_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of an untrained run, open in the browser."""
    with opened(lambda: make_run(tmp_path_factory.mktemp("app") / "run")) as tab:
        yield tab


def fill(page, label: str, value: object) -> None:
    page.get_by_label(label, exact=True).first.fill(str(value))


def test_a_class_is_drawn_and_can_be_downloaded(page):
    fill(page, "seed", 7)
    draw(page)
    page.get_by_text("seed 7, done").wait_for(timeout=60_000)
    with page.expect_download() as download:
        page.locator("#picture").get_by_label("Download").click()
    data = download.value.path().read_bytes()
    picture = np.asarray(Image.open(io.BytesIO(data)))
    assert data.startswith(b"\x89PNG")
    assert picture.shape == (3 * 34 + 2, 3 * 34 + 2, 3)  # eight images of 32 x 32
    assert picture.std() > 10


def test_a_wide_picture(page):
    fill(page, "width", 64)
    fill(page, "seed", 8)
    draw(page)
    page.get_by_text("seed 8, done").wait_for(timeout=60_000)
    width = page.locator("#picture img").evaluate("image => image.naturalWidth")
    assert width == 3 * 66 + 2
    fill(page, "width", 32)


def test_what_is_wrong_is_said_in_the_words_of_the_command_line(page):
    fill(page, "height", 33)
    draw(page)
    page.get_by_text("expected multiples of 8, the pixels of a token").first.wait_for(timeout=30_000)
    fill(page, "height", 32)


def test_it_shows_the_picture_in_the_making_and_stops(page):
    # More steps than the slider offers by hand: typed into its number.
    page.get_by_label("steps", exact=False).first.fill("250")
    fill(page, "seed", 9)
    draw(page)
    page.locator("#word").get_by_text("%").wait_for(timeout=30_000)
    page.get_by_role("button", name="Stop").click()
    page.get_by_label("steps", exact=False).first.fill("2")
    fill(page, "seed", 10)
    draw(page)
    page.get_by_text("seed 10, done").wait_for(timeout=60_000)
