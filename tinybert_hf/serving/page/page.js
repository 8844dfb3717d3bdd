// Asks /search and shows what it answers. Whatever comes from the corpus is put in as text, never as HTML.

const STEP = 10; // results at first, and with each "More results"
const MOST = 100; // that the server gives
const byId = (id) => document.getElementById(id);
const apiKey = () => sessionStorage.getItem("api_key");
const [form, query, login, key, alert, status, ranking, more] = [
  "form", "query", "login", "key", "alert", "status", "ranking", "more",
].map(byId);

let running = new AbortController();
let count = STEP;

async function ask(question) {
  const params = new URLSearchParams({ q: question, top_k: count, highlight: true });
  const headers = apiKey() ? { Authorization: `Bearer ${apiKey()}` } : {};
  const response = await fetch(`search?${params}`, { headers, signal: running.signal });
  if (response.ok) return response.json();
  if (response.status === 401) {
    login.hidden = false;
    key.focus();
    throw new Error(apiKey() ? "The key is not right." : "This server asks for its key.");
  }
  const { detail } = await response.json().catch(() => ({ detail: `The server answers ${response.status}.` }));
  throw new Error(typeof detail === "string" ? detail : detail.map((problem) => problem.msg).join(" "));
}

async function search(question) {
  running.abort();
  running = new AbortController();
  const mine = running;
  document.title = question ? `${question} - Search` : "Search";
  query.value = question;
  alert.hidden = more.hidden = true;
  status.textContent = question ? "Searching" : "";
  ranking.classList.add("old");
  let hits = [];
  try {
    const started = performance.now();
    if (question) hits = await ask(question);
    if (mine !== running) return;
    const results = hits.length === 1 ? "1 result" : `${hits.length} results`;
    if (question) status.textContent = `${results} in ${Math.round(performance.now() - started)} ms`;
    login.hidden = true;
  } catch (error) {
    if (mine !== running) return;
    status.textContent = "";
    alert.hidden = false;
    alert.textContent = error instanceof TypeError ? "The server does not answer. Is it running?" : error.message;
  }
  ranking.classList.remove("old");
  ranking.replaceChildren(...hits.map(show));
  [...ranking.children].forEach(fold);
  more.hidden = hits.length < count || count >= MOST;
}

function show(hit) {
  const item = byId("result").content.cloneNode(true);
  const { id, score, text, highlight, heading, title, file, page, line, url, ...rest } = hit;
  const name = heading ?? title ?? (file === undefined && !/^[0-9a-f]{32}$/.test(id) ? id : ""); // no hash for a name
  const [h2, number, passage, place] = ["h2", ".score span:last-child", ".text", ".place"].map((part) => item.querySelector(part));
  h2.textContent = name || file || "Passage";
  h2.classList.toggle("hidden", !(name || file));
  number.textContent = score.toFixed(2);
  passage.append(...marked(text, highlight));
  if (name && file !== undefined) add(place, file);
  if (page !== undefined) add(place, `page ${page}`);
  if (line !== undefined) add(place, `line ${line}`);
  for (const [field, value] of Object.entries(rest)) add(place, `${field}: ${value}`);
  if (url !== undefined) add(place, link(String(url)));
  return item;
}

function marked(text, highlight) {
  if (!highlight) return [text];
  const letters = [...text]; // the server counts code points, JavaScript units of UTF-16
  const [start, end] = highlight;
  const mark = document.createElement("mark");
  mark.textContent = letters.slice(start, end).join("");
  return [letters.slice(0, start).join(""), mark, letters.slice(end).join("")];
}

function link(url) {
  if (!/^https?:\/\//i.test(url)) return url; // javascript: and the like stay text
  const anchor = document.createElement("a");
  anchor.href = url;
  anchor.rel = "noopener noreferrer";
  anchor.textContent = url;
  return anchor;
}

function add(list, content) {
  const item = document.createElement("li");
  item.dir = "auto";
  item.append(content);
  list.append(item);
}

// A long passage shows its beginning, or where its marked sentence is.
function fold(item) {
  const [passage, button] = [item.querySelector(".text"), item.querySelector(".all")];
  passage.classList.add("folded");
  if (passage.scrollHeight <= passage.clientHeight + 8) {
    passage.classList.remove("folded");
    return;
  }
  const mark = passage.querySelector("mark");
  if (mark) passage.scrollTop = mark.offsetTop - passage.offsetTop - 32;
  button.hidden = false;
  button.addEventListener("click", () => {
    const open = !passage.classList.toggle("folded");
    button.setAttribute("aria-expanded", open);
    button.textContent = open ? "Show less" : "Show all";
  });
}

function fromAddress() {
  count = STEP;
  search(new URLSearchParams(location.search).get("q")?.trim() ?? "");
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const question = query.value.trim();
  if (!question) return;
  history.pushState(null, "", `?${new URLSearchParams({ q: question })}`);
  fromAddress();
});
login.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("api_key", key.value);
  key.value = "";
  fromAddress();
});
more.addEventListener("click", async () => {
  const seen = ranking.children.length;
  count = Math.min(count + STEP, MOST);
  await search(query.value.trim());
  const next = ranking.children[seen];
  next?.setAttribute("tabindex", "-1"); // the keyboard goes on where the new ones begin
  next?.focus();
});
addEventListener("popstate", fromAddress);
fromAddress();
