"""The page of a server in headless Chromium: by mouse, keyboard and screen reader, wide and narrow, light and dark.

    make interop; python -m pytest tests/serving/test_page.py -q

With PICTURES=FOLDER it leaves a picture of each.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait
from serving_setup import RECORDS, build_index, serve
from transformers import PreTrainedTokenizerBase

from tinybert_hf import SearchIndex
from tinybert_hf.serving.app import Service

pytestmark = pytest.mark.interop
LONG = "The index keeps what was written. " * 40 + "To undo it, restore the copy. " + "Nothing else is lost. " * 20
DOCUMENTS: list[dict[str, Any]] = [
    {
        "id": "a",
        "text": "\U0001f600 Undo a change by a revert. Then push.",
        "heading": "Undo",
        "file": "git.md",
        "line": 12,
    },
    {"id": "b", "text": LONG, "file": "manual.pdf", "page": 3, "url": "https://example.org/manual#undo"},
    {
        "id": "c",
        "text": "<img src=x onerror=alert(1)> <b>bold</b>",
        "url": "javascript:alert(1)",
        "heading": "<i>x</i>",
    },
    {"id": "d", "text": "\u05d4\u05d7\u05d6\u05e8 \u05d0\u05ea \u05d4\u05e9\u05d9\u05e0\u05d5\u05d9", "file": "he.txt"},
    {"id": "e", "text": "x" * 300, "section": "long words"},
]
MARKS = {"a": "Undo a change by a revert.", "b": "To undo it, restore the copy."}


class Marking(SearchIndex):
    """An index whose hits name the sentence that answers, as offsets into their text."""

    def search(self, *arguments: Any, **options: Any) -> list[Any]:
        hits = super().search(*arguments, **options)
        for hit in hits:
            if hit["id"] in MARKS:
                start = hit["text"].index(MARKS[hit["id"]])
                hit["highlight"] = [start, start + len(MARKS[hit["id"]])]
        return hits


@pytest.fixture(scope="module")
def index(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> SearchIndex:
    more = [{"text": f"{record['text']} {number}"} for record in RECORDS for number in range(3)]
    return Marking(build_index(tmp_path_factory.mktemp("page"), tokenizer, [*DOCUMENTS, *more[:14]]))


@pytest.fixture(scope="module")
def site(index: SearchIndex) -> Iterator[str]:
    with serve(Service(index, None)) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    with browser.chromium() as driver:
        yield driver


def results(driver: webdriver.Chrome) -> dict[str, Any]:
    """The shown cards by the first words of their passages."""
    cards = driver.find_elements(By.CSS_SELECTOR, "#ranking > li")
    return {card.find_element(By.CSS_SELECTOR, ".text").get_property("textContent")[:9]: card for card in cards}


def open_link(
    driver: webdriver.Chrome, site: str, query: str = "?q=undo", size: tuple[int, int] = browser.DESKTOP
) -> None:
    browser.set_viewport(driver, size)
    driver.get(f"{site}/{query}")
    if query:
        browser.wait_for(driver, "status", r"results? in \d+ ms")


def show_all(driver: webdriver.Chrome) -> None:
    """All 19 records: those after the first ten come by the button."""
    driver.find_element(By.ID, "more").click()
    browser.wait_for(driver, "status", r"^19 results")


def test_a_link_carries_the_question_and_results_are_the_servers(
    chromium: webdriver.Chrome, site: str, index: SearchIndex
) -> None:
    open_link(chromium, site, "?q=play+some+music")
    shown = chromium.find_elements(By.CSS_SELECTOR, "#ranking .text")
    assert [text.get_property("textContent") for text in shown] == [
        hit["text"] for hit in index.search("play some music", 10)
    ]
    assert chromium.find_element(By.ID, "query").get_property("value") == "play some music"
    assert chromium.title == "play some music - Search"
    assert not [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]


def test_the_keyboard_is_enough(chromium: webdriver.Chrome, site: str) -> None:
    open_link(chromium, site, "")
    chromium.switch_to.active_element.send_keys("send mail", Keys.ENTER)  # the field has the focus
    browser.wait_for(chromium, "status", "10 results")
    assert chromium.current_url.endswith("/?q=send+mail")
    more = chromium.find_element(By.ID, "more")
    more.send_keys(Keys.ENTER)
    browser.wait_for(chromium, "status", "19 results")
    cards = chromium.find_elements(By.CSS_SELECTOR, "#ranking > li")
    assert chromium.switch_to.active_element == cards[10] and not more.is_displayed()
    chromium.back()
    WebDriverWait(chromium, 60).until(lambda driver: not results(driver))
    assert chromium.find_element(By.ID, "query").get_property("value") == ""


def test_place_score_and_sentence_are_shown_and_nothing_of_the_corpus_becomes_html(
    chromium: webdriver.Chrome, site: str
) -> None:
    open_link(chromium, site)
    show_all(chromium)
    cards = results(chromium)
    undo, manual, html = cards["\U0001f600 Undo a "], cards["The index"], cards["<img src="]
    assert undo.find_element(By.TAG_NAME, "h2").text == "Undo"
    assert undo.find_element(By.CSS_SELECTOR, ".place").text.split("\n") == ["git.md", "line 12"]
    assert undo.find_element(By.TAG_NAME, "mark").text == MARKS["a"]
    assert float(undo.find_element(By.CSS_SELECTOR, ".score span:last-child").text) <= 1
    assert manual.find_element(By.TAG_NAME, "a").get_attribute("href") == "https://example.org/manual#undo"
    assert "page 3" in manual.text and manual.find_element(By.TAG_NAME, "mark").is_displayed()
    assert html.find_element(By.CSS_SELECTOR, ".text").text == DOCUMENTS[2]["text"]
    assert not html.find_elements(By.CSS_SELECTOR, "img, b, i, a")
    shown = chromium.execute_script(
        "const [text, mark] = [arguments[0], arguments[0].querySelector('mark')].map((e) => e.getBoundingClientRect());"
        "return mark.top >= text.top && mark.bottom <= text.bottom",
        manual.find_element(By.CSS_SELECTOR, ".text"),
    )
    assert shown, "the marked sentence of a long passage is cut off"
    button = manual.find_element(By.CSS_SELECTOR, ".all")
    height = manual.size["height"]
    button.click()
    assert button.get_attribute("aria-expanded") == "true" and manual.size["height"] > height


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [browser.DESKTOP, browser.PHONE], ids=["desktop", "phone"])
def test_everyone_can_read_it(
    chromium: webdriver.Chrome, site: str, theme: str, size: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    """What axe-core finds; and nothing is wider than the screen."""
    preference = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", preference)
    open_link(chromium, site, size=size)
    show_all(chromium)
    if folder := os.environ.get("PICTURES"):
        chromium.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
        for card in [results(chromium)["The index"], results(chromium)["\U0001f600 Undo a "]]:
            chromium.execute_script("document.getElementById('ranking').prepend(arguments[0])", card)
        chromium.save_screenshot(str(Path(folder, f"{request.node.callspec.id}.png")))
    assert browser.find_faults(chromium) == []
    root = chromium.find_element(By.TAG_NAME, "html")
    assert root.get_property("scrollWidth") == root.get_property("clientWidth")
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_page_asks_for_the_key_once(chromium: webdriver.Chrome, index: SearchIndex) -> None:
    with serve(Service(index, "secret")) as address:
        browser.set_viewport(chromium, browser.DESKTOP)
        chromium.get(f"{address}/?q=undo")
        browser.wait_for(chromium, "alert", "asks for its key")
        key = chromium.switch_to.active_element
        assert key.get_attribute("id") == "key"
        key.send_keys("wrong", Keys.ENTER)
        browser.wait_for(chromium, "alert", "not right")
        key.send_keys("secret", Keys.ENTER)
        browser.wait_for(chromium, "status", "10 results")
        assert not key.is_displayed() and "secret" not in chromium.current_url
        chromium.get(f"{address}/?q=mail")
        browser.wait_for(chromium, "status", "10 results")
    chromium.execute_script("document.querySelector('form').requestSubmit()")
    browser.wait_for(chromium, "alert", "does not answer")
