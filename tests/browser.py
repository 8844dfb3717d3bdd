"""The demo page in headless Chromium, on loopback: for tests/publish/test_space.py and for the pictures in docs/.

    python tests/browser.py outputs/published docs/demo      # docs/demo.png and docs/demo-phone.png

Everything that the page takes from npm's CDN comes from .interop/node_modules here (`make interop`), at the very
version that it names. Chromium reaches 127.0.0.1 and nothing else.
"""

import argparse
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tinybert_hf.publish import space

INTEROP = Path(__file__).parents[1] / ".interop"
DESKTOP, PHONE = (1280, 860), (360, 740)  # CSS pixels
ISOLATED = {"cross-origin-embedder-policy": "require-corp", "cross-origin-opener-policy": "same-origin"}
OFFLINE = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--no-proxy-server"]
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]


class SiteHandler(SimpleHTTPRequestHandler):
    """A folder, and below /npm/ what the page would have from the CDN: /npm/NAME@VERSION/FILE."""

    def translate_path(self, path: str) -> str:
        package = re.match(r"/npm/((?:@[^/@]+/)?[^/@]+)@([^/]+)/(.+)", path)
        if not package:
            return super().translate_path(path)
        name, version, file = package.groups()
        folder = INTEROP / "node_modules" / name
        assert folder.is_dir(), f"{folder} is missing: run `make interop`."
        installed = json.loads((folder / "package.json").read_text())["version"]
        assert installed == version, f"the page names {name} {version}, `make interop` installs {installed}"
        return str(folder / file)

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")  # as the CDN sends it
        for name, value in ISOLATED.items():  # as the Space's README.md asks for them
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""


class SiteServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that leaves the page while it loads is no news."""


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address of a server for the folder."""
    server = SiteServer(("127.0.0.1", 0), partial(SiteHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    for name, path in programs.items():
        assert path, f"{name} is missing: install the packages chromium and chromium-driver, or run `make interop`."
    with TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = programs["chromium"]
        for flag in ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *QUIET, *OFFLINE]:
            options.add_argument(flag)
        options.add_argument(f"--user-data-dir={profile}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options, Service(programs["chromedriver"]))
        try:
            yield driver
        finally:
            driver.quit()


def find_faults(driver: webdriver.Chrome) -> list[tuple[str, str]]:
    """What axe-core finds wrong for people who do not see the page as others do: rule, and the place."""
    driver.execute_script((INTEROP / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8"))
    driver.set_script_timeout(60)
    script = "const done = arguments[0]; axe.run().then((found) => done(found.violations))"
    return [(fault["id"], fault["nodes"][0]["html"]) for fault in driver.execute_async_script(script)]


def set_viewport(driver: webdriver.Chrome, size: tuple[int, int], scale: float = 1) -> None:
    """The size of the page itself; below 500 a phone. Windows cannot be as narrow as phones."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def ranking(driver: webdriver.Chrome) -> list[tuple[float, str]]:
    """Scores and passages, once the page shows them for what it was asked last."""
    WebDriverWait(driver, 60, 0.05).until(lambda d: d.find_elements(By.CSS_SELECTOR, "#ranking:not(.old)"))
    rows = driver.find_elements(By.CSS_SELECTOR, "#ranking li")
    return [
        (float(row.find_element(By.CSS_SELECTOR, ".score").text), row.find_element(By.TAG_NAME, "p").text)
        for row in rows
    ]


def wait_for(driver: webdriver.Chrome, element_id: str, pattern: str, seconds: float = 60) -> str:
    """The text of an element once the pattern is in it; a failure shows what the page says instead."""

    def found(driver: webdriver.Chrome) -> str | bool:
        text = driver.find_element(By.ID, element_id).text
        return text if re.search(pattern, text) else False

    try:
        return WebDriverWait(driver, seconds, poll_frequency=0.05).until(found)
    except Exception as error:
        says = {name: driver.find_element(By.ID, name).text for name in ("status", "alert")}
        raise AssertionError(f"no {pattern!r} in #{element_id}; {says}, {driver.get_log('browser')}") from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder built with push_to_hub.py --onnx")
    parser.add_argument("pictures", help="where they go, without -phone.png and .png")
    arguments = parser.parse_args()
    space.NPM = "/npm"
    with TemporaryDirectory() as scratch:
        site = Path(scratch).resolve()
        (site / "tinybert").symlink_to(arguments.model.resolve())
        page = space.build_space(site / "page", "tester/demo", site / "tinybert", None)
        with serve(site) as address, chromium() as driver:
            for size, suffix in ((DESKTOP, ""), (PHONE, "-phone")):
                set_viewport(driver, size, scale=1.5)
                driver.get(f"{address}/{page.name}/")
                wait_for(driver, "status", " in [0-9]+ ms")
                time.sleep(5)  # sentences are marked one after the other
                driver.save_screenshot(f"{arguments.pictures}{suffix}.png")


if __name__ == "__main__":
    main()
