// The page: takes what the visitor types, asks the worker for a ranking and shows it.
import { settings } from "./settings.js";

const LARGEST_FILE = 5e6; // bytes
const TYPING_PAUSE = 200; // ms without a key before a search

const element = (id) => document.getElementById(id);
const [form, query, examples, passages, file] = ["form", "query", "examples", "passages", "file"].map(element);
let worker;
let asked = 0; // number of the last search; answers to older ones are dropped
let timer;

/** One passage a line, or a paragraph where there are blank lines; none twice. */
function split(text) {
  const parts = /\n\s*\n/.test(text.trim()) ? text.split(/\n\s*\n/) : text.split("\n");
  return [...new Set(parts.map((part) => part.replace(/\s+/g, " ").trim()).filter(Boolean))];
}

// ---- What the visitor sees ----

function showAlert(message) {
  element("alert").textContent = message;
  element("alert").hidden = !message;
}

/** A line of text and, while something is done, a bar: a share of 1, or undefined where it is not known. */
function showStatus(text, share = null) {
  element("status").textContent = text;
  element("progress").hidden = share === null;
  if (share >= 0) element("progress").value = share;
  else element("progress").removeAttribute("value");
}

function showRanking(ranking) {
  const rows = ranking.map(({ text, score }) => {
    const row = document.createElement("li");
    const number = Object.assign(document.createElement("span"), { className: "score", textContent: score.toFixed(2) });
    number.title = `cosine similarity ${score.toFixed(4)}`;
    number.style.setProperty("--share", `${Math.max(score, 0) * 100}%`);
    row.append(number, Object.assign(document.createElement("p"), { textContent: text }));
    return row;
  });
  element("ranking").replaceChildren(...rows);
  element("ranking").classList.remove("old");
}

function stop(message) {
  worker?.terminate();
  worker = undefined;
  showStatus("");
  showAlert(message);
}

// ---- What the visitor does ----

function search() {
  clearTimeout(timer);
  if (!worker) return; // it has failed, and the alert says why
  const texts = split(passages.value);
  const question = query.value.trim();
  element("count").textContent = texts.length.toLocaleString("en");
  showAlert(texts.length ? "" : "There are no passages to search. Paste some, one a line, or open a text file.");
  if (texts.length && question) element("ranking").classList.add("old");
  else showRanking([]);
  // An empty question still has the passages encoded, so that the first real one is answered at once.
  worker.postMessage({ id: ++asked, query: question, passages: texts });
}

function searchSoon() {
  clearTimeout(timer);
  timer = setTimeout(search, TYPING_PAUSE);
}

async function openFile(opened) {
  if (!opened) return;
  if (opened.size > LARGEST_FILE) {
    showAlert(`${opened.name} has ${(opened.size / 1e6).toFixed(1)} MB. This page takes up to ${LARGEST_FILE / 1e6} MB.`);
    return;
  }
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await opened.arrayBuffer());
  } catch {
    text = "\0"; // bytes that are no UTF-8
  }
  if (text.includes("\0")) {
    showAlert(`${opened.name} is not a text file in UTF-8. Save it as plain text first.`);
  } else if (!split(text).length) {
    showAlert(`${opened.name} is empty.`);
  } else {
    passages.value = text;
    search();
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  search();
  query.blur(); // puts a phone's keyboard away
});
examples.addEventListener("click", ({ target }) => {
  if (target.tagName !== "BUTTON") return;
  query.value = target.textContent;
  search();
});
query.addEventListener("input", searchSoon);
passages.addEventListener("input", searchSoon);
file.addEventListener("change", () => {
  openFile(file.files[0]);
  file.value = ""; // the same file can be opened again
});
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(name, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return; // text dropped into a field
    event.preventDefault(); // else the browser leaves the page for the file
    document.body.classList.toggle("drop", over);
    if (name === "drop") openFile(event.dataTransfer.files[0]);
  });
}

// ---- The worker ----

function answer({ data }) {
  if (data.failed) {
    stop(`The model ${settings.model} did not load: ${data.failed}. Check the connection and reload the page.`);
  } else if (data.loading) {
    const { loaded, total } = data.loading;
    const size = (bytes) => (bytes / 1e6).toFixed(1);
    showStatus(`Loading the model: ${size(loaded)} of ${size(total)} MB`, total ? loaded / total : undefined);
  } else if (data.starting) {
    showStatus("Starting the model", undefined);
  } else if (data.id !== asked) {
    return;
  } else if (data.error) {
    showStatus("");
    showAlert(`The search failed: ${data.error}.`);
  } else if (data.encoding) {
    const { done, total } = data.encoding;
    showStatus(`Reading the passages: ${done.toLocaleString("en")} of ${total.toLocaleString("en")}`, done / total);
  } else if (data.ranking) {
    showRanking(data.ranking);
    const shown = data.ranking.length < data.total ? `The best ${data.ranking.length} of ${data.total}` : "Ranked";
    showStatus(`${shown} in ${Math.round(data.milliseconds)} ms`);
  } else {
    showStatus(query.value.trim() ? "" : "Ready. Type a question.");
  }
}

query.value = settings.examples[0].query;
passages.value = settings.examples.map(({ answer }) => answer).join("\n\n");
for (const { query: textContent } of settings.examples.slice(0, 4)) {
  examples.append(Object.assign(document.createElement("button"), { type: "button", dir: "auto", textContent }));
}
element("model").textContent = settings.model;
element("model").href = settings.link;
document.title = `${settings.model}: search by meaning`;
if (typeof WebAssembly !== "object") {
  stop("This browser has no WebAssembly, or it is switched off: the model cannot run here. A current Firefox, Chrome, Edge or Safari has it.");
} else {
  showStatus("Loading what runs the model", undefined);
  try {
    worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    worker.addEventListener("message", answer);
    worker.addEventListener("error", (event) => {
      const reason = event.message ? ` (${event.message})` : "";
      stop(`This browser could not start the model's worker${reason}. A current Firefox, Chrome, Edge or Safari can.`);
    });
  } catch (error) {
    stop(`This browser has no module workers (${error.message}). A current Firefox, Chrome, Edge or Safari has them.`);
  }
  search();
}
