"""The page that a Space shows, in headless Chromium: what visitors see when all is well, and when it is not.

    make interop; python -m pytest tests/publish/test_space.py -q

Publishing it is in tests/publish/test_push_space.py.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
import torch
from huggingface_hub import ModelCard
from loopback_hub import LoopbackHub
from publishing import REPO, Command, contents
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait
from transformers import AutoTokenizer

import tinybert_hf.publish.space
from tinybert_hf import TinyBertConfig, TinyBertModel, encode
from tinybert_hf.losses import ranking_loss
from tinybert_hf.onnx import OnnxEncoder
from tinybert_hf.publish.folder import build_folder
from tinybert_hf.publish.space import build_space
from tinybert_hf.tokenization import save_tokenizer, train_tokenizer

pytestmark = pytest.mark.interop
SPACE = "tester/demo"
READY = r" in \d+ ms"


EXAMPLES = json.loads(Path(tinybert_hf.publish.space.__file__).with_name("examples").joinpath("pairs.json").read_text())
PASSAGES = [row["answer"] for row in EXAMPLES]
QUESTIONS = [row["query"] for row in EXAMPLES[:4]]
TOKENS = 20  # of the longest passage; the text below is cut off
LONG = "scanned pages " * 100


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has learned the page's questions, with the first passages as their answers, by heart."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer([*PASSAGES, *QUESTIONS], vocab_size=600, model_max_length=TOKENS)
    model = TinyBertModel(
        TinyBertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=TOKENS,
            pooling="mean",  # no token is without weight, the end mark neither
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    queries, passages = (tokenizer(texts, padding=True, return_tensors="pt") for texts in (QUESTIONS, PASSAGES))
    none = torch.empty(2, 0, dtype=torch.long)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(40):
        embeddings = [model(**batch).pooler_output for batch in (queries, passages)]
        loss = ranking_loss(*embeddings, torch.arange(len(QUESTIONS)), none, temperature=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1
    folder = tmp_path_factory.mktemp("space")
    model.save_pretrained(folder / "model")
    save_tokenizer(tokenizer, folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as it is published with ONNX."""
    return build_folder(trained, tmp_path_factory.mktemp("site") / "model", "model", onnx=True)


@pytest.fixture(scope="module")
def site(exported: Path) -> Iterator[str]:
    """The address of the page as `--output_dir` builds it, with its model beside it."""
    folder = exported.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tinybert_hf.publish.space, "NPM", "/npm")
        for name in ("page", "broken"):
            build_space(folder / name, SPACE, exported, None)
        settings = folder / "broken" / "settings.js"
        settings.write_text(settings.read_text().replace('"model": "model"', '"model": "nowhere"'))
        with browser.serve(folder) as address:
            yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    with browser.chromium() as driver:
        yield driver


@pytest.fixture
def page(chromium: webdriver.Chrome, site: str) -> webdriver.Chrome:
    """The page as visitors find it. Loading it takes seconds, so that one that works is set back instead."""
    browser.set_viewport(chromium, browser.DESKTOP)
    if chromium.current_url.split("#")[0] == f"{site}/page/":
        set_passages(chromium, "\n".join(PASSAGES))
        ask(chromium, QUESTIONS[0])
    else:
        forget(chromium, site)
        chromium.get(f"{site}/page/")
        browser.wait_for(chromium, "status", READY)
    return chromium


def forget(driver: webdriver.Chrome, site: str) -> None:
    """What the browser keeps of earlier visits."""
    driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": site, "storageTypes": "all"})


def ask(driver: webdriver.Chrome, question: str) -> list[tuple[float, str]]:
    query = driver.find_element(By.ID, "query")
    query.clear()
    query.send_keys(question)
    query.send_keys(Keys.ENTER)
    return browser.ranking(driver)


def set_passages(driver: webdriver.Chrome, text: str) -> None:
    script = "const field = document.getElementById('passages'); field.value = arguments[0];"
    driver.execute_script(script + "field.dispatchEvent(new Event('input'));", text)


def record(driver: webdriver.Chrome) -> None:
    """From now on, keep every text of the status line."""
    driver.execute_script("""
        window.statuses = [];
        const status = document.getElementById("status");
        new MutationObserver(() => window.statuses.push(status.textContent)).observe(status, {childList: true});
    """)


def before_the_page(driver: webdriver.Chrome, script: str) -> Any:
    """Run a script before those of the next pages; returns what takes that back."""
    added = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    return lambda: driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_a_published_page_ranks_as_the_package_does(
    trained: Path,
    exported: Path,
    online: LoopbackHub,
    command: Command,
    tmp_path: Path,
    chromium: webdriver.Chrome,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The page of the Space, the model of the Hub and the libraries of the CDN, each of an origin of its own."""
    (tmp_path / "space").mkdir()
    with browser.serve(tmp_path) as cdn, browser.serve(tmp_path / "space") as address:
        monkeypatch.setattr(tinybert_hf.publish.space, "NPM", f"{cdn}/npm")
        command("--model", trained, "--repo_id", REPO)
        onnx = {file: content for file, content in contents(exported).items() if file.startswith("onnx/")}
        online.add_commit(REPO, onnx)  # as --onnx would make them once more
        printed = command("--model", trained, "--repo_id", REPO, "--space", SPACE)
        assert f"Pushed the page in one commit: {online.url}/spaces/{SPACE}" in printed
        for files, folder in ((online.files(SPACE, repo_type="space"), "space"), (online.files(REPO), "model")):
            for file, content in files.items():
                (tmp_path / folder / file).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / folder / file).write_bytes(content)
        browser.set_viewport(chromium, browser.DESKTOP)
        chromium.get(address)
        browser.wait_for(chromium, "status", READY)
        set_passages(chromium, "\n".join([LONG, *PASSAGES[:8]]))
        browser.wait_for(chromium, "count", "^9$")
        found = {question: ask(chromium, question) for question in QUESTIONS}
        link = chromium.find_element(By.ID, "model")
        assert (link.text, link.get_attribute("href")) == (REPO, f"{online.url}/{REPO}")

    model, tokenizer = OnnxEncoder(tmp_path / "model"), AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(tokenizer(LONG)["input_ids"]) > TOKENS
    passages = [LONG.strip(), *PASSAGES[:8]]
    for question, answer in zip(QUESTIONS, PASSAGES, strict=False):
        assert found[question][0][1] == answer
        scores = (encode(model, tokenizer, [question]) @ encode(model, tokenizer, passages).T)[0]
        expected = dict(zip(passages, scores.tolist(), strict=True))
        shown = {text: score for score, text in found[question]}
        assert shown == pytest.approx(expected, abs=0.01)  # it shows two decimals
        assert list(shown.values()) == sorted(shown.values(), reverse=True)
    commit = online.commits(REPO)[0].id
    loaded = {r.path for r in online.requests if f"/{REPO}/resolve/{commit}/" in r.path and r.method == "GET"}
    assert f"/{REPO}/resolve/{commit}/onnx/model_quantized.onnx" in loaded


def test_the_first_ranking_comes_without_a_click(page: webdriver.Chrome) -> None:
    assert browser.ranking(page)[0][1] == PASSAGES[0]
    assert page.find_element(By.ID, "status").text.startswith("The best 10 of 14 in ")
    assert page.find_element(By.ID, "count").text == "14"
    assert not page.find_element(By.ID, "alert").is_displayed()


def test_the_page_begins_with_the_models_own_examples_from_either_side(
    site: str, exported: Path, chromium: webdriver.Chrome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tinybert_hf.publish.space, "NPM", "/npm")
    page = build_space(exported.parent / "hebrew", SPACE, exported, None)
    settings = page / "settings.js"
    script = settings.read_text()
    own = [{"query": "איפה </script>", "answer": "הגבינה במקרר"}, {"query": "🧀", "answer": "ein Käse"}]
    start = script.index('"examples"')
    settings.write_text(script[:start] + f'"examples": {json.dumps(own)}' + script[script.index("]", start) + 1 :])
    chromium.get(f"{site}/hebrew/")
    browser.wait_for(chromium, "status", READY)
    assert {text for _, text in browser.ranking(chromium)} == {row["answer"] for row in own}
    query = chromium.find_element(By.ID, "query")
    assert query.get_property("value") == own[0]["query"]
    assert chromium.execute_script("return getComputedStyle(arguments[0]).direction", query) == "rtl"
    buttons = chromium.find_elements(By.CSS_SELECTOR, "#examples button")
    assert [button.text for button in buttons] == [row["query"] for row in own]


def test_an_example_is_one_click(page: webdriver.Chrome) -> None:
    for number in (1, 2, 3, 0):
        page.find_elements(By.CSS_SELECTOR, "#examples button")[number].click()
        assert browser.ranking(page)[0][1] == PASSAGES[number]


def test_a_ranking_follows_the_typing(page: webdriver.Chrome) -> None:
    query = page.find_element(By.ID, "query")
    query.clear()
    query.send_keys(QUESTIONS[2])  # and no Enter
    browser.wait_for(page, "ranking", "^.*\\n" + re.escape(PASSAGES[2]))


def test_progress_is_shown_while_the_model_loads(chromium: webdriver.Chrome, site: str) -> None:
    observe = """
        window.statuses = [];
        new MutationObserver((changes) => changes.forEach(({addedNodes}) => addedNodes.forEach(({parentNode, data}) =>
            parentNode?.id === "status" && statuses.push([data, document.getElementById("progress").value])
        ))).observe(document, {childList: true, subtree: true});
    """
    undo = before_the_page(chromium, observe)
    forget(chromium, site)
    chromium.get(f"{site}/page/?")  # not the address of the `page` that is used again
    browser.wait_for(chromium, "status", READY)
    undo()
    shown = chromium.execute_script("return window.statuses")
    texts = [text for text, _ in shown]
    assert texts[:2] == ["Starting", "Loading what runs the model"]
    shares = [share for text, share in shown if re.fullmatch(r"Loading the model: [\d.]+ of [\d.]+ MB", text)]
    assert shares == sorted(shares) and shares[-1] == 1
    assert "Starting the model" in texts and "Reading the passages: 8 of 14" in texts
    assert not chromium.find_element(By.ID, "progress").is_displayed()


def test_passages_are_encoded_once(page: webdriver.Chrome) -> None:
    """As the number of texts that the status line counts: only more than eight are counted there."""
    record(page)
    ask(page, QUESTIONS[1])
    new = [f"line {number}" for number in range(9)]
    set_passages(page, "\n".join(PASSAGES + new))
    browser.wait_for(page, "status", f"The best 10 of 23{READY}")
    counted = [text for text in page.execute_script("return window.statuses") if "Reading" in text]
    assert counted == ["Reading the passages: 0 of 9", "Reading the passages: 8 of 9"]
    set_passages(page, "\n".join(new))
    browser.wait_for(page, "status", f"Ranked{READY}")
    set_passages(page, "\n".join(PASSAGES + new))  # those that had gone are encoded again
    browser.wait_for(page, "status", f"The best 10 of 23{READY}")
    assert "Reading the passages: 8 of 14" in page.execute_script("return window.statuses")


def test_the_page_answers_while_passages_are_read_and_a_newer_wish_wins(page: webdriver.Chrome) -> None:
    set_passages(page, "\n".join(f"passage {number} {PASSAGES[number % 14]}" for number in range(3000)))
    browser.wait_for(page, "status", "Reading the passages: [0-9,]+ of 3,000")
    set_passages(page, "\n".join(PASSAGES[:2]))
    browser.wait_for(page, "status", f"Ranked{READY}")
    assert len(browser.ranking(page)) == 2


def test_passages_are_lines_or_paragraphs_and_none_twice(page: webdriver.Chrome) -> None:
    set_passages(page, "one\ntwo\n one \n\n\nthree\n")
    browser.wait_for(page, "count", "^2$")
    browser.wait_for(page, "status", f"Ranked{READY}")
    assert {text for _, text in browser.ranking(page)} == {"one two one", "three"}
    set_passages(page, "<b>one</b>\ntwo\n one \none\n")
    browser.wait_for(page, "count", "^3$")
    browser.wait_for(page, "status", f"Ranked{READY}")
    assert {text for _, text in browser.ranking(page)} == {"<b>one</b>", "two", "one"}


@pytest.mark.parametrize("way", ["chosen", "dropped"])
def test_a_text_file_replaces_the_passages(page: webdriver.Chrome, tmp_path: Path, way: str) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("Käse und Brot\r\nunpack a zip file\r\n", encoding="utf-8")
    open_file(page, file, way)
    browser.wait_for(page, "count", "^2$")
    browser.wait_for(page, "status", f"Ranked{READY}")
    assert {text for _, text in browser.ranking(page)} == {"Käse und Brot", "unpack a zip file"}


def open_file(driver: webdriver.Chrome, file: Path, way: str = "chosen") -> None:
    if way == "chosen":
        driver.find_element(By.ID, "file").send_keys(str(file))
        return
    drop = """
        const data = new DataTransfer();
        data.items.add(new File([arguments[0]], "mine.txt"));
        const event = new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
        document.getElementById("hint").dispatchEvent(event);
        return event.defaultPrevented;
    """
    assert driver.execute_script(drop, file.read_text(encoding="utf-8")), "the browser would leave the page"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n\0", "file.bin is not a text file in UTF-8"),
        ("k\u00e4se".encode("latin-1"), "file.bin is not a text file in UTF-8"),
        (b"text\0", "file.bin is not a text file in UTF-8"),
        (b" \n\n", "file.bin is empty"),
        (b"word " * 1_100_000, r"file.bin has 5.5 MB. This page takes up to 5 MB"),
    ],
)
def test_a_file_that_holds_no_passages_is_named(
    page: webdriver.Chrome, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "file.bin").write_bytes(content)
    open_file(page, tmp_path / "file.bin")
    browser.wait_for(page, "alert", message)
    assert page.find_element(By.ID, "passages").get_property("value").split("\n") == PASSAGES
    ask(page, QUESTIONS[1])  # and all goes on
    assert not page.find_element(By.ID, "alert").is_displayed()


def test_without_passages_or_question_the_page_says_what_to_do(page: webdriver.Chrome) -> None:
    set_passages(page, " \n")
    browser.wait_for(page, "alert", "There are no passages to search. Paste some")
    assert browser.ranking(page) == []
    set_passages(page, "\n".join(PASSAGES))
    browser.wait_for(page, "status", READY)
    query = page.find_element(By.ID, "query")
    query.send_keys(Keys.CONTROL, "a", Keys.DELETE)
    browser.wait_for(page, "status", "^Ready. Type a question.$")
    assert browser.ranking(page) == []


@pytest.mark.parametrize(
    ("folder", "script", "message"),
    [
        ("page", "delete window.WebAssembly", "This browser has no WebAssembly"),
        ("page", "delete window.Worker", "This browser has no module workers"),
        (
            "page",
            "window.Worker = class extends Worker { constructor(url) { super(url); } }",  # as browsers before 2023
            "This browser could not start the model's worker",
        ),
        ("broken", "", "The model nowhere did not load: .*/nowhere/config.json.*Check the connection"),
    ],
)
def test_what_keeps_the_model_from_running_is_named(
    chromium: webdriver.Chrome, site: str, folder: str, script: str, message: str
) -> None:
    undo = before_the_page(chromium, script)
    chromium.get(f"{site}/{folder}/?")
    browser.wait_for(chromium, "alert", message)
    undo()
    assert not chromium.find_element(By.ID, "progress").is_displayed()
    assert chromium.find_element(By.ID, "status").text == ""


def test_a_phone_scrolls_in_one_direction_only(page: webdriver.Chrome) -> None:
    set_passages(page, "\n".join([*PASSAGES, "x" * 500, "https://example.org/" + "long/" * 60]))
    browser.set_viewport(page, browser.PHONE)
    ask(page, "x" * 500)
    sizes = "return [innerWidth, document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    inner, width, height = page.execute_script(sizes)
    assert inner == width == browser.PHONE[0] and height > browser.PHONE[1]
    places = {name: page.find_element(By.ID, name).rect for name in ("query", "ranking", "passages")}
    assert places["query"]["y"] < places["ranking"]["y"] < places["passages"]["y"]
    assert places["passages"]["width"] > 0.9 * width


TABLES = {
    "csv": 'question;answer\n"How, or why?";"So ""it"" goes;\nand on"\nWhen?;Now it is\n;\n',
    "jsonl": """{"question": "How, or why?", "answer": "So \\"it\\" goes;\\nand on", "year": 2}
{"question": "When?", "answer": "Now it is"}
""",
    "json": '[{"question": "How, or why?", "answer": "So \\"it\\" goes; and on"}, {"answer": "Now it is", "question": "When?"}]',
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_column_of_a_table_is_ranked(page: webdriver.Chrome, tmp_path: Path, kind: str) -> None:
    (tmp_path / f"faq.{kind}").write_text(TABLES[kind], encoding="utf-8")
    open_file(page, tmp_path / f"faq.{kind}")
    browser.wait_for(page, "count", "^2$")
    browser.wait_for(page, "status", f"Ranked{READY}")
    assert {text for _, text in browser.ranking(page)} == {'So "it" goes; and on', "Now it is"}
    columns = Select(page.find_element(By.ID, "column"))
    assert [option.text for option in columns.options] == ["question", "answer"]  # a year is no text
    assert columns.first_selected_option.text == "answer"
    columns.select_by_visible_text("question")
    browser.wait_for(page, "ranking", "When")
    assert {text for _, text in browser.ranking(page)} == {"How, or why?", "When?"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("faq.csv", 'answer\n"never closed\n', "faq.csv could not be read: row 1: Quoted field unterminated"),
        ("faq.jsonl", '{"answer": "so"}\n{"answer": \n', "faq.jsonl could not be read: Unexpected end of JSON"),
        ("faq.jsonl", '{"year": 1}\n', "faq.jsonl has no column with text"),
    ],
)
def test_a_table_that_holds_no_passages_is_named(
    page: webdriver.Chrome, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    open_file(page, tmp_path / name)
    browser.wait_for(page, "alert", message)
    assert page.find_element(By.ID, "passages").get_property("value").split("\n") == PASSAGES


def test_a_reload_keeps_passages_question_and_what_was_read(page: webdriver.Chrome, site: str) -> None:
    texts = [f"{passage} {number}" for number, passage in enumerate(PASSAGES)]
    set_passages(page, "\n".join(texts))
    before = ask(page, QUESTIONS[1])
    observe = "window.statuses = []; new MutationObserver(() => statuses.push(document.body?.innerText ?? ''))"
    undo = before_the_page(page, f"{observe}.observe(document, {{childList: true, subtree: true}})")
    page.refresh()
    browser.wait_for(page, "status", READY)
    undo()
    assert browser.ranking(page) == before
    assert page.find_element(By.ID, "query").get_property("value") == QUESTIONS[1]
    assert not [text for text in page.execute_script("return window.statuses") if "Reading" in text]
    page.find_element(By.ID, "reset").click()
    browser.wait_for(page, "count", f"^{len(PASSAGES)}$")
    assert browser.ranking(page)[0][1] == PASSAGES[0]
    assert not page.find_element(By.ID, "reset").is_displayed()


def test_a_link_carries_the_question(page: webdriver.Chrome, site: str) -> None:
    ask(page, "a & b = ü?")
    assert page.current_url == f"{site}/page/#q=a%20%26%20b%20%3D%20%C3%BC%3F"
    page.get(f"{site}/page/#q={QUESTIONS[3].replace(' ', '%20')}")  # of the same page: it is not loaded anew
    browser.wait_for(page, "ranking", "^.*\\n" + re.escape(PASSAGES[3]))
    assert page.find_element(By.ID, "query").get_property("value") == QUESTIONS[3]


def test_what_is_read_so_far_is_ranked(page: webdriver.Chrome) -> None:
    set_passages(page, "\n".join(f"{PASSAGES[number % 14]} {number} {'word ' * 12}" for number in range(2000)))
    browser.wait_for(page, "status", r"Reading the passages: [\d,]+ of 2,000. Those read so far are ranked")
    assert len(page.find_elements(By.CSS_SELECTOR, "#ranking li")) == 10
    set_passages(page, "\n".join(PASSAGES))
    browser.wait_for(page, "status", READY)


def test_cut_passages_are_counted(page: webdriver.Chrome) -> None:
    set_passages(page, "\n".join([LONG, "short", f"{LONG} again"]))
    browser.wait_for(page, "status", f"Ranked{READY}")
    says = f"2 passages are longer than the {TOKENS} tokens that the model reads: the rest is not compared."
    assert page.find_element(By.ID, "cut").text == says
    set_passages(page, "short\nshorter")
    WebDriverWait(page, 20).until(lambda driver: not driver.find_element(By.ID, "cut").text)


def test_the_closest_sentence_of_a_passage_is_marked(page: webdriver.Chrome) -> None:
    set_passages(page, "\n".join([f"So it is. {PASSAGES[1]} All else is left out.", "one <b>sentence</b>"]))
    ask(page, QUESTIONS[1])
    mark = WebDriverWait(page, 20).until(lambda driver: driver.find_element(By.CSS_SELECTOR, "#ranking mark"))
    assert mark.text == PASSAGES[1]
    assert [row.text for row in page.find_elements(By.CSS_SELECTOR, "#ranking p")][1] == "one <b>sentence</b>"


def test_the_page_names_the_models_languages(
    trained: Path, exported: Path, chromium: webdriver.Chrome, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tinybert_hf.publish.space, "NPM", "/npm")
    card = exported / "README.md"
    said = card.read_text()
    card.write_text(said.replace("---\n", "---\nlanguage:\n- en\n- de\n- multilingual\n", 1))
    build_space(exported.parent / "languages", SPACE, exported, None)
    card.write_text(said)
    chromium.get(f"{site}/languages/")
    browser.wait_for(chromium, "status", READY)
    assert chromium.find_element(By.ID, "languages").text == "It knows English and German."


def test_a_space_asks_for_what_lets_browsers_use_several_threads(page: webdriver.Chrome, exported: Path) -> None:
    said = ModelCard.load(exported.parent / "page" / "README.md", ignore_metadata_errors=True).data
    assert said.custom_headers == browser.ISOLATED
    assert page.execute_script("return crossOriginIsolated")


@pytest.mark.parametrize("size", [browser.DESKTOP, browser.PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_checker_of_accessibility_finds_nothing(page: webdriver.Chrome, size: tuple[int, int], scheme: str) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.set_viewport(page, size)
    set_passages(page, "\n".join([f"So it is. {passage} That is all." for passage in PASSAGES]))
    ask(page, QUESTIONS[1])
    WebDriverWait(page, 20).until(lambda driver: driver.find_element(By.CSS_SELECTOR, "#ranking mark"))
    assert browser.find_faults(page) == []
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
