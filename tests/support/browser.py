"""A real headless Chromium that shows a file."""

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
# Scripts of pages are off: what is evaluated here comes by the debugger, which they do not concern.
_NO_SCRIPTS = {"profile.managed_default_content_settings.javascript": 2}


def has_chromium() -> bool:
    """Whether there is one here."""
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


class Page:
    """A page that is shown in a window of a given width."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self._driver = driver

    def open(self, path: Path, width: int) -> None:
        """Shows a file, `width` CSS pixels wide."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self._driver.get(path.as_uri())

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self._driver.execute_cdp_cmd("Runtime.evaluate", {"expression": expression, "returnByValue": True})
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """What the browser complained about since it was last asked."""
        return [entry["message"] for entry in self._driver.get_log("browser")]

    def requests(self) -> list[str]:
        """The addresses that were asked for since the last time, but for those that hold their own data."""
        events = [json.loads(entry["message"])["message"] for entry in self._driver.get_log("performance")]
        sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith(("data:", "chrome:"))]

    def screenshot(self, path: Path) -> None:
        """Keeps what is seen as a PNG."""
        self._driver.save_screenshot(str(path))

    def pdf_pages(self) -> int:
        """How many pages it has when printed on A4."""
        import base64
        import re

        data = base64.b64decode(self._driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": False})["data"])
        return len(re.findall(rb"/Type\s*/Page\b", data))


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A browser with a profile folder of its own, gone at the end."""
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
