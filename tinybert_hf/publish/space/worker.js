// The model, off the page's thread: {id, query, passages} comes in, progress and a ranking go out.
import { settings } from "./settings.js";

const TOP = 10;
const BATCH = 8; // passages between two looks at what the visitor wants now

const embeddings = new Map(); // passage -> its embedding, as long as the visitor keeps the passage
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

/** Texts of a kind, "query" or "document" -> embeddings of length 1, as Float32Arrays. */
async function encode(texts, kind) {
  const prompt = settings.prompts[kind]; // the model knows texts of this kind behind it
  const inputs = tokenizer(texts.map((text) => prompt + text), { padding: true, truncation: true });
  const [rows, tokens] = inputs.input_ids.dims;
  // transformers.js drops the end mark of a text that it cuts off; the model was trained with it.
  for (let row = 0; row < rows; row++) {
    const last = row * tokens + tokens - 1;
    if (inputs.attention_mask.data[last]) inputs.input_ids.data[last] = BigInt(tokenizer.sep_token_id);
  }
  const { sentence_embedding: output } = await model(inputs);
  const size = output.dims[1];
  return texts.map((_, row) => output.data.slice(row * size, (row + 1) * size));
}

async function search(request) {
  const { id, query, passages } = request;
  const start = performance.now();
  const missing = passages.filter((text) => !embeddings.has(text)).sort((a, b) => a.length - b.length); // less padding
  for (let done = 0; done < missing.length; done += BATCH) {
    if (missing.length > BATCH) postMessage({ id, encoding: { done, total: missing.length } });
    await new Promise((resolve) => setTimeout(resolve)); // lets a newer request in
    if (request !== latest) return;
    const texts = missing.slice(done, done + BATCH);
    const rows = await encode(texts, "document");
    texts.forEach((text, i) => embeddings.set(text, rows[i]));
  }
  const wanted = new Set(passages);
  if (request === latest) for (const text of embeddings.keys()) if (!wanted.has(text)) embeddings.delete(text);
  if (!query || !passages.length) {
    postMessage({ id });
    return;
  }
  const [asked] = await encode([query], "query");
  const ranking = passages.map((text) => ({ text, score: embeddings.get(text).reduce((sum, x, i) => sum + x * asked[i], 0) }));
  ranking.sort((a, b) => b.score - a.score);
  postMessage({ id, ranking: ranking.slice(0, TOP), total: passages.length, milliseconds: performance.now() - start });
}

const reason = (error) => String(error?.message ?? error).replace(/[.\s]+$/, "");
const loaded = load().then(
  () => true,
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
