"""The limit on image sizes: one thread's limit neither reaches another nor stays behind."""

from __future__ import annotations

import threading

import pytest
from PIL import Image

from vilavt_toolkit.utils.pillow import limit_pixels


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 25)).save(path)
    return path


def test_an_image_may_have_as_many_pixels_as_the_limit_and_no_more(picture):
    with limit_pixels(1000), Image.open(picture) as image:
        assert image.size == (40, 25)
    for limit in (999, 100):  # Pillow itself only warns of the first
        with pytest.raises((Image.DecompressionBombError, Image.DecompressionBombWarning)), limit_pixels(limit):
            Image.open(picture)


def test_a_limit_inside_another_gives_the_outer_one_back():
    before = Image.MAX_IMAGE_PIXELS
    with limit_pixels(1000):
        with limit_pixels(None):
            assert Image.MAX_IMAGE_PIXELS is None
        assert Image.MAX_IMAGE_PIXELS == 1000
    assert before == Image.MAX_IMAGE_PIXELS


def test_an_error_gives_the_limit_back():
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ValueError, match="stop"), limit_pixels(None):
        raise ValueError("stop")
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(("first", "second"), [(None, 1000), (1000, None)])
def test_two_threads_that_overlap_each_see_their_own_limit_and_leave_none(first, second):
    before = Image.MAX_IMAGE_PIXELS
    inside, leave, entered = threading.Event(), threading.Event(), threading.Event()
    seen = {}

    def run_first():
        with limit_pixels(first):
            inside.set()
            leave.wait(10)
            seen["first"] = Image.MAX_IMAGE_PIXELS

    def run_second():
        inside.wait(10)
        with limit_pixels(second):
            entered.set()
            seen["second"] = Image.MAX_IMAGE_PIXELS

    threads = [threading.Thread(target=run) for run in (run_first, run_second)]
    for thread in threads:
        thread.start()
    assert inside.wait(10)
    # The second thread is on its way in while the first one is inside.
    assert not entered.wait(0.05)
    leave.set()
    for thread in threads:
        thread.join(10)
    assert seen == {"first": first, "second": second}
    assert before == Image.MAX_IMAGE_PIXELS
