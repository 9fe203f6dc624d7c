"""A headless Chromium that opens files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

NO_CHROMIUM = "Chromium and its driver are not installed (chromium, chromium-driver)"
# Scripts of pages are disabled; expressions are evaluated by the debugger, which is not affected.
_NO_SCRIPTS = {"profile.managed_default_content_settings.javascript": 2}


def has_chromium() -> bool:
    """Return whether Chromium and its driver are installed."""
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


class Page:
    """A page in a window of a given width."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self._driver = driver

    def open(self, path: Path, width: int) -> None:
        """Open a file in a window `width` CSS pixels wide."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self._driver.get(path.as_uri())

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        response = self._driver.execute_cdp_cmd("Runtime.evaluate", {"expression": expression, "returnByValue": True})
        if "exceptionDetails" in response:
            raise RuntimeError(response["exceptionDetails"])
        return response["result"].get("value")

    def console_messages(self) -> list[str]:
        """Return the messages in the browser's log since the last call."""
        return [entry["message"] for entry in self._driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Return the addresses requested since the last call, without data and blob URLs."""
        events = [json.loads(entry["message"])["message"] for entry in self._driver.get_log("performance")]
        sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith(("data:", "chrome:"))]

    def screenshot(self, path: Path) -> None:
        """Save the visible part as a PNG."""
        self._driver.save_screenshot(str(path))

    def count_pdf_pages(self) -> int:
        """Return the number of pages when printed on A4."""
        import base64
        import re

        data = base64.b64decode(self._driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": False})["data"])
        return len(re.findall(rb"/Type\s*/Page\b", data))


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Run a browser with this profile folder and yield its page."""
    options = Options()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", _NO_SCRIPTS)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(shutil.which("chromedriver"))))
    try:
        yield Page(driver)
    finally:
        driver.quit()
