"""Chromium for the tests of the report page."""

import json
import os

import pytest

from tests.look import browser


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """One Chromium for all tests."""
    if browser.find() is None:
        message = "no chromium and chromedriver on PATH: apt-get install chromium chromium-driver"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    blank = tmp_path_factory.mktemp("blank") / "blank.html"
    blank.write_text("<title>blank</title>")
    with browser.open_page(blank) as driver:
        driver.set_script_timeout(60)  # s, a machine may be busy
        yield driver


@pytest.fixture
def show(driver):
    """Open a page; afterwards check that it fetched and logged nothing."""

    def show(page, size=(1400, 900)):
        for kind in ("browser", "performance"):
            driver.get_log(kind)
        browser.show(driver, page, size)
        browser.wait_until_ready(driver)
        return driver

    yield show
    assert driver.get_log("browser") == []
    events = [json.loads(line["message"])["message"] for line in driver.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"].endswith("WillBeSent")]
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "blob"}
