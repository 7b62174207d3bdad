// Asks the server's own API. Texts of documents and models only ever become text nodes.

const $ = (id) => document.getElementById(id);
const state = { history: [], running: null, shown: 0 };

// -- the server --------------------------------------------------------------------------------

async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  const key = sessionStorage.getItem("key");
  if (key) headers.set("Authorization", `Bearer ${key}`);
  if (options.json !== undefined) {
    headers.set("Content-Type", "application/json");
    options = { ...options, method: "POST", body: JSON.stringify(options.json) };
  }
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  if (response.status === 401) $("key").showModal();
  const body = await response.json().catch(() => ({}));
  throw new Error(body.error?.message ?? `the server answered ${response.status}`);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const [, name = "message"] = block.match(/^event: (.*)$/m) ?? [];
      const data = JSON.parse(block.match(/^data: (.*)$/m)[1]);
      if (name === "error") throw new Error(data.error.message);
      yield [name, data];
    }
  }
}

// -- small things ------------------------------------------------------------------------------

function element(tag, text, properties = {}) {
  const made = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) made.textContent = text;
  return made;
}

function complain(error) {
  $("notice").textContent = error.message ?? String(error);
  $("notice").hidden = false;
}

// The server counts characters, JavaScript halves of some.
function slices(text, start, stop) {
  if (!/[\ud800-\udfff]/.test(text)) return [text.slice(0, start), text.slice(start, stop), text.slice(stop)];
  const characters = Array.from(text);
  const join = (from, to) => characters.slice(from, to).join("");
  return [join(0, start), join(start, stop), join(stop)];
}

function currentIndex() {
  return $("index").value;
}

// -- documents ---------------------------------------------------------------------------------

async function show(source, span, place, index = currentIndex()) {
  const query = new URLSearchParams({ index, source });
  const found = await (await request(`/v1/rag/documents/text?${query}`)).json();
  const [before, marked, after] = slices(found.text, ...(span ?? [0, 0]));
  const first = before.split("\n").length;
  const last = first + marked.replace(/\n$/, "").split("\n").length - 1;
  const lines = first === last ? `line ${first} of the text` : `lines ${first} to ${last} of the text`;
  $("viewer-title").textContent = source;
  const inFile = place?.startsWith("line ") ? "" : place;  // which says no more than the lines
  $("viewer-place").textContent = span ? [inFile, lines].filter(Boolean).join(", ") : "";
  const mark = element("mark", marked);
  $("viewer-text").replaceChildren(before, ...(span ? [mark] : []), after);
  $("viewer").hidden = false;
  $("viewer-title").focus();
  if (span) mark.scrollIntoView({ block: "center" });
}

function closeViewer() {
  $("viewer").hidden = true;
  $("question").focus();
}

async function listDocuments(after = "") {
  const query = new URLSearchParams({ index: currentIndex(), after, limit: 200 });
  const found = await (await request(`/v1/rag/documents?${query}`)).json();
  const rows = found.data.map(({ source }) => {
    const name = element("button", source, { type: "button", className: "name" });
    name.addEventListener("click", () => { $("documents").close(); show(source).catch(complain); });
    const remove = element("button", "Remove", { type: "button" });
    remove.setAttribute("aria-label", `Remove ${source}`);
    remove.addEventListener("click", () => removeDocument(source));
    const row = element("li");
    row.append(name, remove);
    return row;
  });
  if (!after) $("sources").replaceChildren();
  $("sources").append(...rows);
  $("more").hidden = !found.has_more;
  $("more").onclick = () => listDocuments(found.data.at(-1).source).catch(tell);
}

function tell(error) {
  $("report").textContent = error.message ?? String(error);
  $("report").className = "error";
}

async function removeDocument(source) {
  const query = new URLSearchParams({ index: currentIndex(), source });
  try {
    const found = await (await request(`/v1/rag/documents?${query}`, { method: "DELETE" })).json();
    $("report").className = "";
    $("report").textContent = `removed ${found.removed.length} documents`;
    await listDocuments();
  } catch (error) { tell(error); }
}

async function write(path, options) {
  const progress = $("progress");
  progress.removeAttribute("value");
  progress.hidden = false;
  $("report").className = "";
  $("report").textContent = "Working…";
  try {
    for await (const [name, data] of events(await request(path, options))) {
      if (name === "progress") {
        progress.max = Math.max(data.of, 1);
        progress.value = data.files;
      } else if (name === "done") {
        const counts = `${data.added.length} added, ${data.changed.length} changed, `
          + `${data.removed.length} removed, ${data.unchanged} unchanged; ${data.chunks} passages`;
        const skipped = data.skipped.map((one) => `skipped: ${one.reason}`);
        $("report").textContent = [counts, ...skipped].join(". ");
      }
    }
    await listDocuments();
  } catch (error) { tell(error); } finally { progress.hidden = true; }
}

function upload(files) {
  if (!files.length) return;
  const form = new FormData();
  form.append("index", currentIndex());
  form.append("stream", "true");
  for (const file of files) form.append("file", file);
  write("/v1/rag/documents", { method: "POST", body: form });
}

// -- questions and answers ---------------------------------------------------------------------

function passageButtons(list, passages) {
  list.replaceChildren(...passages.map((hit, i) => {
    const where = hit.place ? `${hit.source}, ${hit.place}` : hit.source;
    const button = element("button", `[${i + 1}] ${where} · ${hit.score.toFixed(2)}`, { type: "button" });
    button.addEventListener("click", () => show(hit.source, hit.span, hit.place).catch(complain));
    const item = element("li");
    item.append(button);
    return item;
  }));
}

function linkCitations(answer, list, text, citations) {
  const byNumber = new Map(citations.map((one) => [one.number, one]));
  answer.replaceChildren(...text.split(/(\[\d+\])/).map((part) => {
    const cited = byNumber.get(Number(part.match(/^\[(\d+)\]$/)?.[1]));
    if (!cited) return document.createTextNode(part);
    const button = element("button", part, { type: "button", className: "cite" });
    const where = cited.place ? `${cited.source}, ${cited.place}` : cited.source;
    button.setAttribute("aria-label", `Citation ${cited.number}: ${where}`);
    button.addEventListener("click", () => show(cited.source, cited.span, cited.place).catch(complain));
    return button;
  }));
  for (const number of byNumber.keys()) {
    list.children[number - 1]?.firstChild.classList.add("cited");
  }
}

async function ask(question) {
  const article = element("article");
  const answer = element("div", "", { className: "answer busy" });
  const list = element("ol", undefined, { className: "passages" });
  const measures = element("p", "", { className: "quiet" });
  article.append(element("h2", question), answer, list, measures);
  $("turns").append(article);
  article.scrollIntoView({ block: "end" });
  const controller = state.running = new AbortController();
  const json = { index: currentIndex(), question, history: state.history.slice(-8), stream: true };
  if ($("style").value) json.style = $("style").value;
  let text = "", citations = [];
  setRunning(true);
  try {
    const response = await request("/v1/rag/ask", { json, signal: controller.signal });
    for await (const [name, data] of events(response)) {
      if (name === "passages") {
        passageButtons(list, data.passages);
        if (data.question !== question) measures.textContent = `asked as: ${data.question}`;
      } else if (name === "text") {
        text += data.text;
        answer.textContent = text;
      } else if (name === "citations") {
        citations = data.citations;
        linkCitations(answer, list, text, citations);
        const left = [...data.unsupported.map((one) => `left out, for no passage supports it: ${one}`)];
        if (data.finish_reason === "length") left.push("the answer was cut at its most tokens");
        for (const line of left) article.append(element("p", line, { className: "quiet" }));
      } else if (name === "done") {
        const seconds = Object.entries(data.timings).map(([what, s]) => `${what} ${s.toFixed(2)} s`);
        measures.textContent = [measures.textContent, ...seconds, `${data.usage.completion_tokens} tokens`]
          .filter(Boolean).join(" · ");
      }
    }
    state.history.push({ question, answer: text });
  } catch (error) {
    const said = controller.signal.aborted ? "stopped" : error.message;
    article.append(element("p", said, { className: "error" }));
  } finally {
    answer.classList.remove("busy");
    setRunning(false);
    article.scrollIntoView({ block: "end" });
  }
}

function setRunning(is) {
  $("turns").setAttribute("aria-busy", String(is));
  $("send").disabled = is;
  $("stop").disabled = !is;
  if (!is) state.running = null;
}

function submit() {
  const question = $("question").value.trim();
  if (!question || state.running) return;
  $("notice").hidden = true;
  $("question").value = "";
  ask(question);
}

// -- the page ----------------------------------------------------------------------------------

async function loadIndexes() {
  const found = await (await request("/v1/rag/indexes")).json();
  const wanted = new URLSearchParams(location.search).get("index");
  $("index").replaceChildren(...found.data.map(({ id }) => element("option", id, { value: id })));
  if (found.data.some(({ id }) => id === wanted)) $("index").value = wanted;
  if (!found.data.length) complain(new Error("this server has no index: start it with --index DIR"));
}

async function openLink() {
  const query = new URLSearchParams(location.search);
  if (!query.get("source")) return;
  const span = query.has("start") ? [Number(query.get("start")), Number(query.get("stop"))] : undefined;
  await show(query.get("source"), span, "", query.get("index") ?? currentIndex());
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").setAttribute("aria-pressed", String(theme === "dark"));
}

function begin() {
  $("notice").hidden = true;
  loadIndexes().then(openLink).catch(complain);
}

$("ask").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
});
document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
  if (event.key === "/" && !typing) { event.preventDefault(); $("question").focus(); }
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (state.running) state.running.abort();
  else if (!$("viewer").hidden) closeViewer();
});
$("stop").addEventListener("click", () => state.running?.abort());
$("clear").addEventListener("click", () => { state.running?.abort(); state.history = []; $("turns").replaceChildren(); $("question").focus(); });
$("index").addEventListener("change", () => { state.history = []; });
$("close-viewer").addEventListener("click", closeViewer);
$("open-documents").addEventListener("click", () => { $("report").textContent = ""; $("documents").showModal(); listDocuments().catch(tell); });
$("open-key").addEventListener("click", () => $("key").showModal());
$("key-form").addEventListener("submit", () => { sessionStorage.setItem("key", $("key-value").value.trim()); begin(); });
for (const button of document.querySelectorAll("[data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
$("files").addEventListener("change", () => { upload([...$("files").files]); $("files").value = ""; });
$("sync").addEventListener("click", () => write("/v1/rag/sync", { json: { index: currentIndex(), stream: true } }));
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  $("drop").addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", over);
    if (name === "drop") upload([...event.dataTransfer.files]);
  });
}
$("theme").addEventListener("click", () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("theme", theme);
  setTheme(theme);
});
setTheme(localStorage.getItem("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
begin();
