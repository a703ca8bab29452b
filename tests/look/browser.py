"""Chromium for the tests and the benchmark of the report page."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    " --disable-background-networking --disable-component-update --disable-dev-shm-usage"
)
# Selenium must use the installed driver and not download another.
os.environ["SE_OFFLINE"] = "true"
os.environ["SE_AVOID_STATS"] = "true"


def find() -> tuple[str, str] | None:
    """Return the paths of Chromium and its driver, if both are installed."""
    browser = next((path for name in NAMES if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextlib.contextmanager
def open_page(page, size=(1400, 900)):
    """Open a file in a new Chromium; a width below 500 px emulates a phone."""
    from selenium import webdriver

    paths = find()
    assert paths
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = paths[0]
        for flag in [*FLAGS.split(), f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options, webdriver.ChromeService(paths[1]))
        try:
            show(driver, page, size)
            yield driver
        finally:
            driver.quit()


def show(driver, page, size=(1400, 900)):
    """Load another page in the same browser."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500},
    )
    driver.get(Path(page).resolve().as_uri())


def wait_until_ready(driver) -> float:
    """Wait for the first image; return the ms from the start of loading until it was drawn."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        ready = driver.execute_script("return document.documentElement.dataset.ready")
        if ready:
            return float(ready)
        time.sleep(0.02)
    raise TimeoutError("the page drew no image within a minute")


def rows(driver, table):
    """The cells of a table's body as text."""
    return driver.execute_script(
        "return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))",
        table,
    )


def act(driver, script, *arguments):
    """Run a script, and wait until the current image is drawn."""
    driver.execute_script(script, *arguments)
    driver.execute_async_script(
        """
        const [done] = arguments, { dataset } = document.getElementById("canvas");
        const current = () => document.querySelector("#list [aria-current]").value;
        const isDone = () => dataset.image === current() && dataset.missing === "0";
        const wait = () => (isDone() ? done() : requestAnimationFrame(wait));
        requestAnimationFrame(() => requestAnimationFrame(wait));
        """
    )


def slide(driver, value):
    act(
        driver,
        "const [value] = arguments, slider = document.getElementById('score');"
        "slider.value = value;"
        "for (const type of ['input', 'change']) slider.dispatchEvent(new Event(type));",
        value,
    )


def press(driver, key, **more):
    act(
        driver,
        "const [key, more] = arguments;"
        "document.activeElement.dispatchEvent("
        "  new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true, ...more}));",
        key,
        more,
    )


def text(driver, id_):
    return driver.execute_script("return document.getElementById(arguments[0]).textContent", id_)
