// The model, off the page's thread: {id, query, passages} comes in; progress, a ranking and marks go out.
import { keep, recall } from "./kept.js";
import { settings } from "./settings.js";

const TOP = 10;
const BATCH = 8; // passages between two looks at what the visitor wants now
const PAUSE = 1000; // ms between two rankings of what is read so far
const MOST_SENTENCES = 50; // of a passage, among which one is marked
const NAME = `${settings.model} ${settings.revision} embeddings`; // under which the browser keeps them

// Passage -> its embedding and whether it was cut off, as long as the visitor keeps the passage.
let embeddings = new Map();
const sentences = new Map(); // sentence -> its embedding, until passages go
let latest; // the last request; work for an older one stops
let model, tokenizer;

async function load() {
  const { npm, version, model: name, revision, host, path } = settings;
  const { AutoTokenizer, PreTrainedModel, env } = await import(`${npm}/@huggingface/transformers@${version}/dist/transformers.min.js`);
  env.remoteHost = new URL(host, location.href).href;
  env.remotePathTemplate = path;
  // Its default runtime can use a GPU too and is twice as large.
  const { wasm, versions } = env.backends.onnx;
  const runtime = new URL(`${npm}/onnxruntime-web@${versions.web}/dist/ort-wasm-simd-threaded`, location.href).href;
  wasm.wasmPaths = { mjs: `${runtime}.mjs`, wasm: `${runtime}.wasm` };
  wasm.numThreads = crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 4) : 1; // the others may be slow ones

  const progress_callback = ({ status, file, loaded, total }) => {
    if (status !== "progress" || !file.endsWith(".onnx")) return; // the others are small
    postMessage({ loading: { loaded, total } });
    if (loaded === total) postMessage({ starting: true });
  };
  // The model first: where there is none, its error names the address.
  // Not AutoModel, which warns of a model type that it does not know, and then takes this class too.
  model = await PreTrainedModel.from_pretrained(name, { revision, progress_callback, dtype: "q8", device: "wasm" });
  tokenizer = await AutoTokenizer.from_pretrained(name, { revision });
}

/** Texts of a kind, "query" or "document" -> embeddings of length 1, as Float32Arrays, and whether each was cut off. */
async function encode(texts, kind) {
  const prompted = texts.map((text) => settings.prompts[kind] + text); // the model knows texts of this kind behind it
  const inputs = tokenizer(prompted, { padding: true, truncation: true });
  const [rows, tokens] = inputs.input_ids.dims;
  const cut = new Array(rows).fill(false);
  // transformers.js drops the end mark of a text that it cuts off; the model was trained with it.
  for (let row = 0; row < rows; row++) {
    const last = row * tokens + tokens - 1;
    if (!inputs.attention_mask.data[last]) continue;
    inputs.input_ids.data[last] = BigInt(tokenizer.sep_token_id);
    cut[row] = tokens === tokenizer.model_max_length && tokenizer.encode(prompted[row]).length > tokens;
  }
  const { sentence_embedding: output } = await model(inputs);
  const size = output.dims[1];
  return cut.map((cut, row) => ({ embedding: output.data.slice(row * size, (row + 1) * size), cut }));
}

const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);

/** The passages that are read, best first. */
function rank(passages, asked) {
  const read = passages.filter((text) => embeddings.has(text));
  const ranking = read.map((text) => ({ text, score: dot(embeddings.get(text).embedding, asked) }));
  return ranking.sort((a, b) => b.score - a.score).slice(0, TOP);
}

/** Let a newer request in; whether there is none. */
async function isLatest(request) {
  await new Promise((resolve) => setTimeout(resolve));
  return request === latest;
}

async function search(request) {
  const { id, query, passages } = request;
  const start = performance.now();
  const [asked] = query ? (await encode([query], "query")).map(({ embedding }) => embedding) : [];
  const missing = passages.filter((text) => !embeddings.has(text)).sort((a, b) => a.length - b.length); // less padding
  let shown = start;
  for (let done = 0; done < missing.length; done += BATCH) {
    const late = asked && performance.now() > shown + PAUSE;
    if (late) shown = performance.now();
    const ranking = late ? rank(passages, asked) : undefined;
    if (missing.length > BATCH) postMessage({ id, encoding: { done, total: missing.length }, ranking });
    if (!(await isLatest(request))) return;
    const texts = missing.slice(done, done + BATCH);
    const rows = await encode(texts, "document");
    texts.forEach((text, i) => embeddings.set(text, rows[i]));
  }
  if (request !== latest) return;
  const wanted = new Set(passages);
  const gone = [...embeddings.keys()].filter((text) => !wanted.has(text));
  gone.forEach((text) => embeddings.delete(text));
  if (gone.length) sentences.clear();
  if (missing.length || gone.length) keep(NAME, embeddings);
  if (!query || !passages.length) {
    postMessage({ id });
    return;
  }
  const ranking = rank(passages, asked);
  const cut = passages.filter((text) => embeddings.get(text).cut).length;
  const milliseconds = performance.now() - start;
  postMessage({ id, ranking, total: passages.length, cut, limit: tokenizer.model_max_length, milliseconds });
  await mark(request, ranking, asked);
}

/** For each passage of several sentences: which one is closest to the question. */
async function mark(request, ranking, asked) {
  if (!Intl.Segmenter) return;
  const segmenter = new Intl.Segmenter(undefined, { granularity: "sentence" });
  for (const [place, { text }] of ranking.entries()) {
    const parts = [...segmenter.segment(text)].slice(0, MOST_SENTENCES).filter(({ segment }) => segment.trim());
    if (parts.length < 2) continue;
    const missing = parts.map(({ segment }) => segment).filter((segment) => !sentences.has(segment));
    for (let done = 0; done < missing.length; done += BATCH) {
      if (!(await isLatest(request))) return;
      const texts = missing.slice(done, done + BATCH);
      (await encode(texts, "document")).forEach(({ embedding }, i) => sentences.set(texts[i], embedding));
    }
    if (!(await isLatest(request))) return;
    const scores = parts.map(({ segment }) => dot(sentences.get(segment), asked));
    const { segment, index } = parts[scores.indexOf(Math.max(...scores))];
    postMessage({ id: request.id, mark: { place, start: index, end: index + segment.trimEnd().length } });
  }
}

const reason = (error) => String(error?.message ?? error).replace(/[.\s]+$/, "");
const loaded = Promise.all([recall(NAME), load()]).then(
  ([earlier]) => {
    embeddings = earlier ?? embeddings;
    return true;
  },
  (error) => postMessage({ failed: reason(error) }),
);

addEventListener("message", async ({ data }) => {
  latest = data;
  if (!(await loaded) || data !== latest) return;
  try {
    await search(data);
  } catch (error) {
    postMessage({ id: data.id, error: reason(error) });
  }
});
