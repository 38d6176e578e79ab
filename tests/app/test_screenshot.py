"""A picture of the page of a trained run, where a variable asks for it:

SCREENSHOT=page.png .venv/bin/python -m pytest tests/app/test_screenshot.py     of RUN, or runs/demo
"""

import os

import pytest

from tests.app.browser import ROOT, draw, opened

ASKED = "SCREENSHOT"


@pytest.mark.skipif(ASKED not in os.environ, reason=f"{ASKED}=FILE.png keeps a picture of the page")
def test_the_page_can_be_shown():
    with opened(lambda: os.environ.get("RUN", ROOT / "runs" / "demo")) as page:
        draw(page)
        page.get_by_text("seed 0, done").wait_for(timeout=120_000)
        page.screenshot(path=os.environ[ASKED], full_page=True)
