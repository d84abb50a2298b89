// Puts the page together: filters, list and detail.

const byId = (id) => document.getElementById(id);

function theme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const set = (name) => { document.documentElement.dataset.theme = name; };
  set(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => set(dark.matches ? "dark" : "light"));
  byId("theme").addEventListener("click", () => set(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
}

function figures(overview, index) {
  const { statistics, throughput } = overview;
  const { rows, funnel, answers } = statistics;
  const list = byId("figures");
  const say = (name, value, note) => list.append(element("div", {}, element("dt", {}, name), element("dd", {}, value, element("small", {}, note))));
  say("Rows", number(rows), funnel ? `${number(funnel.kept_percent, 1)} % of ${number(funnel.read.rows)}` : "in the file");
  const drafted = Object.values(statistics.tags).reduce((sum, counts) => sum + counts.drafted, 0);
  const kept = Object.values(statistics.tags).reduce((sum, counts) => sum + counts.kept, 0);
  if (drafted) say("Tags kept", `${number((kept * 100) / drafted, 1)} %`, `${number(kept / Math.max(rows, 1), 1)} for a row`);
  if (answers) {
    say("New answers are", `${number(answers.length_ratio, 2)} ×`, "as long as the original ones");
    say("ROUGE-L", number(answers.rougeL.f, 1), "new against original answers");
    say("GLEU", number(answers.gleu_words.mean, 1), `words; characters ${number(answers.gleu_characters.mean, 1)}`);
  }
  const { points, time } = speedsOf(throughput);
  if (points.length) {
    const tokens = points.reduce((sum, point) => sum + point.speed * (point.to - point.from), 0);
    say("Tokens per second", number(tokens / time), `${number(tokens)} in ${duration(time)}`);
  }
}

function options(select, pairs) {
  select.replaceChildren(...pairs.map(([value, text]) => element("option", { value }, text)));
}

const ORDERS = {
  file: ["as in the file", null],
  unlike: ["least alike answers", (index, a, b) => (index.similarity[a] ?? 1e9) - (index.similarity[b] ?? 1e9)],
  alike: ["most alike answers", (index, a, b) => (index.similarity[b] ?? -1) - (index.similarity[a] ?? -1)],
  margin: ["least sure verdicts", (index, a, b) => (index.margin[a] ?? 1e9) - (index.margin[b] ?? 1e9)],
  longest: ["longest answers", (index, a, b) => index.answer_characters[b] - index.answer_characters[a]],
  shortest: ["shortest answers", (index, a, b) => index.answer_characters[a] - index.answer_characters[b]],
};

async function start() {
  theme();
  const [overview, index] = (await Promise.all([unpack("overview"), unpack("index")])).map((text) => JSON.parse(text));
  const { statistics, key, variant, version } = overview;
  const model = (await new Rows(overview.rows_per_chunk).row(0)).sysgen.model;
  byId("subtitle").textContent = [`${number(statistics.rows)} rows`, model ? `written by ${model}` : null, variant ? `variant ${variant}` : null].filter(Boolean).join(" · ");
  byId("footer").textContent = `sysgen-data ${version} · the page holds all of its data and asks no network for anything`;
  figures(overview, index);
  byId("funnel").append(funnelChart(statistics));
  byId("tag-chart").append(...tagChart(statistics));
  byId("lengths").append(lengthCharts(index));
  byId("throughput").append(...[throughputChart(overview.throughput)].flat());
  for (const [name, value] of Object.entries({ ...key, "dataset.jsonl": overview.dataset_hash })) {
    if (value) byId("key").append(element("dt", {}, name), element("dd", { class: value.length === 64 ? "hash" : "" }, value));
  }
  browse(overview, index);
}

function browse(overview, index) {
  const rows = new Rows(overview.rows_per_chunk);
  const all = index.ids.map((_, i) => i);
  const section = byId("rows");
  const detail = byId("detail");
  let marks = true;
  let round = 0;

  options(byId("tag"), [["", "any"], ...overview.tags.map((tag, i) => [i, tag])]);
  options(byId("label"), [["", "any"], ["Good", "Good"], ["Bad", "Bad"], ["None", "None"], ["Unread", "unread"], ["kept", "kept"], ["removed", "removed"]]);
  options(byId("source"), [["", "any"], ...index.sources.map((source, i) => [i, source])]);
  options(byId("order"), Object.entries(ORDERS).map(([value, [text]]) => [value, text]));

  const wanted = () => byId("search").value.trim().toLowerCase();
  const list = new List(index, async (row, open) => {
    history.replaceState(null, "", `#row=${encodeURIComponent(index.ids[row])}`);
    const data = await rows.row(row);
    if (list.chosen !== row) return;
    detail.replaceChildren(...rowDetail(data, wanted(), marks, controls));
    detail.scrollTop = 0;
    if (open) {
      section.classList.add("reading");
      if (getComputedStyle(byId("list")).display === "none") {
        detail.focus({ preventScroll: true });
        byId("rows").scrollIntoView();
      }
    }
  });
  const controls = {
    back() {
      section.classList.remove("reading");
      list.draw();
      list.reveal(list.shown.indexOf(list.chosen));
      byId("list").focus();
    },
    move(by) { list.move(by); },
    marks(on) {
      marks = on;
      list.choose(list.chosen, false);
    },
  };

  function labelled(verdicts, tag, label) {
    const tags = tag === "" ? [0, 1, 2, 3, 4, 5, 6, 7] : [Number(tag)];
    return tags.some((number) => {
      const verdict = verdictOf(verdicts, number);
      if (!verdict.label) return false;
      if (label === "") return true;
      return label === "kept" ? verdict.kept : label === "removed" ? !verdict.kept : verdict.label === label;
    });
  }

  async function filter() {
    const mine = ++round;
    byId("list").setAttribute("aria-busy", "true");
    const [tag, label, source, order] = ["tag", "label", "source", "order"].map((id) => byId(id).value);
    let chosen = all;
    if (source !== "") chosen = chosen.filter((row) => index.source[row] === Number(source));
    if (tag !== "" || label !== "") chosen = chosen.filter((row) => labelled(index.verdicts[row], tag, label));
    const compare = ORDERS[order][1];
    if (compare) chosen = [...chosen].sort((a, b) => compare(index, a, b) || a - b);
    const text = wanted();
    if (text) {
      chosen = await search(chosen, text, mine);
      if (mine !== round) return;
    }
    list.show(chosen, true);
    byId("list").removeAttribute("aria-busy");
    byId("count").textContent = `${number(chosen.length)} of ${number(all.length)} rows`;
    if (chosen.length && !chosen.includes(list.chosen)) list.choose(chosen[0], false);
    else if (chosen.length) list.choose(list.chosen, false);
    else {
      list.chosen = -1;
      detail.replaceChildren();
    }
  }

  /** Goes through the chunks one after the other and lets the page breathe in between. */
  async function search(chosen, text, mine) {
    const found = new Uint8Array(all.length);
    const chunks = [...new Set(chosen.map((row) => Math.floor(row / rows.perChunk)))].sort((a, b) => a - b);
    let done = 0;
    let shown = performance.now();
    for (const chunk of chunks) {
      (await rows.chunk(chunk)).forEach((row, i) => { found[chunk * rows.perChunk + i] = searchable(row).includes(text); });
      if (mine !== round) return [];
      done++;
      if (performance.now() - shown > 250) {
        shown = performance.now();
        byId("count").textContent = `searching, ${number((done * 100) / chunks.length)} %`;
        await new Promise((resume) => setTimeout(resume));
      }
    }
    return chosen.filter((row) => found[row]);
  }

  let typing = 0;
  byId("search").addEventListener("input", () => {
    clearTimeout(typing);
    byId("list").setAttribute("aria-busy", "true");
    typing = setTimeout(filter, 180);
  });
  for (const id of ["tag", "label", "source", "order"]) byId(id).addEventListener("change", filter);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("reset", () => {
    byId("list").setAttribute("aria-busy", "true");
    setTimeout(filter);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const writing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "Escape" && section.classList.contains("reading")) controls.back();
    else if (event.key === "Escape" && writing) byId("list").focus();
    else if (writing) return;
    else if (event.key === "/") {
      event.preventDefault();
      byId("search").focus();
    } else if (event.key === "j") list.move(1);
    else if (event.key === "k") list.move(-1);
  });

  const named = new URLSearchParams(location.hash.slice(1)).get("row");
  list.chosen = Math.max(0, index.ids.indexOf(named));
  filter().then(() => { if (named !== null) list.reveal(list.shown.indexOf(list.chosen)); });
}

start().catch((error) => {
  const problem = byId("problem");
  problem.hidden = false;
  problem.textContent = typeof DecompressionStream === "undefined"
    ? "This page needs a browser of 2023 or newer (DecompressionStream)."
    : `The page could not be put together: ${error.message}`;
  throw error;
});
