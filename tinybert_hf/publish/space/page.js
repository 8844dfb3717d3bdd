// The page: takes what the visitor types, asks the worker for a ranking and shows it.
import { keep, recall } from "./kept.js";
import { settings } from "./settings.js";

const LARGEST_FILE = 5e6; // bytes
const TYPING_PAUSE = 200; // ms without a key before a search
// What a column of texts is often called; without such a name, the one with the longest texts is ranked.
const TEXT_COLUMNS = ["text", "passage", "answer", "document", "content", "body", "reply"];

const element = (id) => document.getElementById(id);
const [form, query, examples, passages, file, column] = ["form", "query", "examples", "passages", "file", "column"].map(element);
const KEY = `passages ${location.pathname}`; // an origin may have several pages
const ownExamples = settings.examples.map(({ answer }) => answer).join("\n\n");
let worker;
let asked = 0; // number of the last search; answers to older ones are dropped
let partial; // the search of which a part is ranked
let timer;
let table = []; // the rows of the file that was opened last, where it has columns

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
    row.append(number, Object.assign(document.createElement("p"), { textContent: text, dir: "auto" }));
    return row;
  });
  element("ranking").replaceChildren(...rows);
  element("ranking").classList.remove("old");
}

/** Mark the sentence of a shown passage that is closest to the question. */
function showMark({ place, start, end }) {
  const passage = element("ranking").children[place].querySelector("p");
  const text = passage.textContent;
  const mark = Object.assign(document.createElement("mark"), { textContent: text.slice(start, end) });
  passage.replaceChildren(text.slice(0, start), mark, text.slice(end));
}

function showCut(cut, limit) {
  const count = cut === 1 ? "1 passage is" : `${cut.toLocaleString("en")} passages are`;
  element("cut").textContent = cut ? `${count} longer than the ${limit} tokens that the model reads: the rest is not compared.` : "";
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
  const texts = split(passages.value);
  const question = query.value.trim();
  element("reset").hidden = passages.value === ownExamples;
  keep(KEY, passages.value === ownExamples ? undefined : passages.value); // the next visit's examples may be others
  if (location.hash || question !== settings.examples[0].query) {
    history.replaceState(null, "", question ? `#q=${encodeURIComponent(question)}` : location.pathname + location.search);
  }
  if (!worker) return; // it has failed, and the alert says why
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

function setPassages(text) {
  passages.value = text;
  search();
}

/** Rank a column of the table: each of its values is a passage. */
function showColumn() {
  setPassages(table.map((row) => String(row[column.value] ?? "").replace(/\s+/g, " ").trim()).filter(Boolean).join("\n\n"));
}

function setTable(rows) {
  table = rows;
  const names = [...new Set(rows.flatMap(Object.keys))].filter((name) => rows.some((row) => /\p{L}/u.test(row[name] ?? "")));
  element("columns").hidden = names.length < 2;
  column.replaceChildren(...names.map((textContent) => Object.assign(document.createElement("option"), { textContent })));
  const letters = (name) => rows.reduce((sum, row) => sum + String(row[name] ?? "").length, 0);
  column.value = TEXT_COLUMNS.find((name) => names.includes(name)) ?? names.sort((a, b) => letters(b) - letters(a))[0];
}

/** The rows of a file with columns; undefined for a file of plain text. */
async function readRows(name, text) {
  if (/\.(csv|tsv)$/i.test(name)) {
    const { data, errors } = (await loadPapaParse()).parse(text.replace(/^\uFEFF/, ""), { header: true, skipEmptyLines: "greedy" });
    const wrong = errors.find(({ type }) => type === "Quotes");
    if (wrong) throw new Error(`row ${wrong.row}: ${wrong.message}`);
    return data;
  }
  if (!/\.(json|jsonl|ndjson)$/i.test(name)) return undefined;
  const rows = /^\s*\[/.test(text) ? JSON.parse(text) : text.split("\n").filter((line) => line.trim()).map((line) => JSON.parse(line));
  return rows.map((row) => (typeof row === "string" ? { text: row } : row));
}

function loadPapaParse() {
  const script = document.createElement("script");
  Object.assign(script, { src: `${settings.npm}/papaparse@5.7.1/papaparse.min.js`, crossOrigin: "anonymous" });
  return new Promise((resolve, reject) => {
    script.onload = () => resolve(globalThis.Papa);
    script.onerror = () => reject(new Error("what reads such files did not load; check the connection"));
    document.head.append(script);
  });
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
    return;
  }
  if (!split(text).length) {
    showAlert(`${opened.name} is empty.`);
    return;
  }
  try {
    const rows = await readRows(opened.name, text);
    if (rows) setTable(rows);
    else element("columns").hidden = true;
    if (!rows) setPassages(text);
    else if (column.value) showColumn();
    else showAlert(`${opened.name} has no column with text.`);
  } catch (error) {
    showAlert(`${opened.name} could not be read: ${error.message}.`);
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
column.addEventListener("change", showColumn);
element("reset").addEventListener("click", () => {
  element("columns").hidden = true;
  query.value = settings.examples[0].query;
  setPassages(ownExamples);
  query.focus(); // the button is gone
});
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

/** The question of the address: a link to the page may carry one. */
const askedInAddress = () => new URLSearchParams(location.hash.slice(1)).get("q");
addEventListener("hashchange", () => {
  query.value = askedInAddress() ?? "";
  search();
});

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
    if (data.ranking?.length) {
      showRanking(data.ranking);
      partial = data.id;
    }
    const soFar = partial === data.id ? ". Those read so far are ranked" : "";
    showStatus(`Reading the passages: ${done.toLocaleString("en")} of ${total.toLocaleString("en")}${soFar}`, done / total);
  } else if (data.ranking) {
    showRanking(data.ranking);
    showCut(data.cut, data.limit);
    const shown = data.ranking.length < data.total ? `The best ${data.ranking.length} of ${data.total}` : "Ranked";
    showStatus(`${shown} in ${Math.round(data.milliseconds)} ms`);
  } else if (data.mark) {
    showMark(data.mark);
  } else {
    showStatus(query.value.trim() ? "" : "Ready. Type a question.");
  }
}

function start() {
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
}

function showLanguages() {
  const names = new Intl.DisplayNames(["en"], { type: "language" });
  const known = [settings.languages ?? []].flat().filter((code) => /^[a-z]{2,3}(-\w+)*$/i.test(code)).map((code) => names.of(code));
  const more = known.length > 4 ? `${known.length} languages, such as ` : "";
  const list = new Intl.ListFormat("en").format(known.slice(0, 4));
  element("languages").textContent = known.length ? `It knows ${more}${list}.` : "";
}

for (const { query: textContent } of settings.examples.slice(0, 4)) {
  examples.append(Object.assign(document.createElement("button"), { type: "button", dir: "auto", textContent }));
}
element("model").textContent = settings.model;
element("model").href = settings.link;
document.title = `${settings.model}: search by meaning`;
showLanguages();
query.value = askedInAddress() ?? settings.examples[0].query;
if (typeof WebAssembly !== "object") {
  stop("This browser has no WebAssembly, or it is switched off: the model cannot run here. A current Firefox, Chrome, Edge or Safari has it.");
} else {
  start();
}
setPassages((await recall(KEY)) ?? ownExamples);
