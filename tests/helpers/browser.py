"""A headless Chromium of the system."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.optional import needs

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


@contextmanager
def chromium(profile: Path, width: int = 1280, height: int = 900, phone: bool = False) -> Iterator[Any]:
    """A browser's driver; the test is skipped where there is no Chromium.

    Args:
        profile: A new folder for what it keeps.
        width: Of the window, in pixels.
        height: Of the window, in pixels.
        phone: Whether it is as a phone: two pixels a point, and touched.
    """
    needs("selenium")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    if phone:
        metrics = dict(width=width, height=height, pixelRatio=2.0, touch=True)
        options.add_experimental_option("mobileEmulation", dict(deviceMetrics=metrics))
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(programs[1])))
    try:
        driver.set_page_load_timeout(120)
        yield driver
    finally:
        driver.quit()
