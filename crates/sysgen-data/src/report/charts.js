// The four charts. Each has its numbers as text, too: in the bars' labels, or in the title of its drawing.

function bar(name, classes, parts, text) {
  const track = element("span", { class: "track", "aria-hidden": "true" },
    parts.map(([share, kind]) => {
      const part = element("span", { class: kind });
      part.style.width = `${Math.min(100, share * 100)}%`;
      return part;
    }));
  return [element("span", { class: `name ${classes}` }, name), track, element("span", { class: "number" }, text)];
}

function funnelChart(statistics) {
  const funnel = statistics.funnel;
  if (!funnel) return element("p", { class: "quiet" }, "No manifest.json belongs to this file.");
  const all = Math.max(funnel.read.found, funnel.read.rows, 1);
  const bars = element("div", { class: "bars" });
  const step = (name, rows) => bars.append(...bar(name, "", [[rows / all, "fill"]], number(rows)));
  const drop = (name, rows) => rows && bars.append(...bar(name, "reason", [[rows / all, "fill lost"]], `−${number(rows)}`));
  step("in the source files", funnel.read.found);
  for (const [reason, places] of Object.entries(funnel.read.unreadable)) drop(reason, places.count);
  drop("has a system message", funnel.read.with_system);
  drop("shares words with a benchmark", funnel.read.contaminated?.count);
  drop("repeats an earlier row", funnel.read.duplicates?.count);
  drop("nearly repeats an earlier row", funnel.read.near_duplicates?.count);
  drop("beyond the limit", funnel.read.beyond_limit);
  step("for the phases", funnel.read.rows);
  for (const [name, phase] of [["draft, filter", funnel.draft], ["verify", funnel.verify], ["respond", funnel.respond]]) {
    for (const [reason, rows] of Object.entries(phase.dropped)) drop(reason, rows);
    step(`after ${name}`, phase.left);
  }
  return bars;
}

function tagChart(statistics) {
  const bars = element("div", { class: "bars" });
  for (const [tag, counts] of Object.entries(statistics.tags)) {
    const lost = counts.drafted - counts.kept;
    const all = Math.max(statistics.rows, 1);
    const share = number((counts.kept * 100) / all, 1);
    bars.append(...bar(tag, "", [[counts.kept / all, "fill"], [lost / all, "some"]], `${number(counts.kept)} · ${share} %`));
  }
  const legend = element("p", { class: "legend" });
  for (const [name, colour] of [["rows whose system message has it", "--bar"], ["drafted, then removed", "--bar-soft"]]) {
    const swatch = element("i");
    swatch.style.background = `var(${colour})`;
    legend.append(element("span", {}, swatch, name));
  }
  return [bars, legend];
}

function svg(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** A round number that is at least `value` and not much more. */
function rounded(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1e-9)));
  return [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].map((factor) => factor * power).find((candidate) => candidate >= value * 0.999999);
}

function histogram(name, lengths) {
  const used = lengths.filter((length) => length > 0);
  if (!used.length) return null;
  const sorted = Float64Array.from(used).sort();
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  const bins = 24;
  const width = Math.ceil(rounded(at(0.99) / bins));
  const counts = new Array(bins).fill(0);
  for (const length of used) counts[Math.min(bins - 1, Math.floor(length / width))]++;
  while (counts.length > 4 && !counts[counts.length - 1]) counts.pop();
  const highest = Math.max(...counts);
  const [W, H] = [300, 84];
  const step = W / counts.length;
  const label = `${name}: median ${number(at(0.5))}, 90 % up to ${number(at(0.9))}, longest ${number(sorted[sorted.length - 1])} characters`;
  const drawing = svg("svg", { class: "chart", viewBox: `0 0 ${W} ${H + 18}`, role: "img", "aria-label": label });
  counts.forEach((count, i) => {
    const height = count ? Math.max(1.5, (count / highest) * H) : 0;
    const last = i === counts.length - 1 && counts.length === bins;
    const title = svg("title", {}, `${number(i * width)}${last ? " or more" : `–${number((i + 1) * width - 1)}`} characters: ${number(count)} rows`);
    drawing.append(svg("rect", { class: "bar", x: i * step + 0.75, y: H - height, width: Math.max(1, step - 1.5), height, rx: 1.5 }, title));
  });
  drawing.append(svg("line", { class: "axis", x1: 0, x2: W, y1: H + 0.5, y2: H + 0.5 }));
  const places = [0, Math.floor(counts.length / 2), counts.length];
  places.forEach((place, i) => drawing.append(svg("text", { x: place * step, y: H + 14, "text-anchor": ["start", "middle", "end"][i] }, number(place * width))));
  return element("div", {}, element("h3", {}, name), drawing, element("p", { class: "quiet" }, `median ${number(at(0.5))}, 90 % up to ${number(at(0.9))} characters`));
}

function lengthCharts(index) {
  const charts = [
    ["System message", index.system_characters],
    ["Question", index.question_characters],
    ["Original answer", index.original_characters],
    ["Answer to learn", index.answer_characters],
  ].map(([name, lengths]) => histogram(name, lengths));
  return element("div", { class: "histograms" }, charts);
}

function duration(seconds) {
  if (seconds < 90) return `${number(seconds)} s`;
  if (seconds < 5400) return `${number(seconds / 60)} min`;
  return `${number(seconds / 3600, 1)} h`;
}

/** Tokens per second over the time spent generating, whatever lay between two processes. */
function speedsOf(moments) {
  const points = [];
  const last = new Map();
  let time = 0;
  for (const moment of moments) {
    const before = last.get(moment.started) || { seconds: 0, tokens: 0 };
    const seconds = moment.seconds - before.seconds;
    if (seconds > 0) {
      points.push({ from: time, to: time + seconds, speed: (moment.tokens - before.tokens) / seconds, first: before.seconds === 0 });
      time += seconds;
    }
    last.set(moment.started, moment);
  }
  return { points, time, processes: last.size };
}

function throughputChart(moments) {
  const { points, time, processes } = speedsOf(moments);
  if (!points.length) return element("p", { class: "quiet" }, "No times were recorded for this data set.");
  const tokens = points.reduce((sum, point) => sum + point.speed * (point.to - point.from), 0);
  const highest = rounded(Math.max(...points.map((point) => point.speed), 1));
  // Drawn for the width it has, so that its letters keep their size.
  const W = Math.max(300, document.getElementById("throughput").clientWidth);
  const [H, LEFT] = [190, 48];
  const x = (seconds) => LEFT + (seconds / time) * (W - LEFT);
  const y = (speed) => H - (speed / highest) * H;
  const label = `${number(tokens / time)} tokens per second over ${duration(time)}`;
  const drawing = svg("svg", { class: "chart", viewBox: `0 -6 ${W} ${H + 26}`, role: "img", "aria-label": label });
  for (const share of [0, 0.5, 1]) {
    drawing.append(svg("line", { class: "axis", x1: LEFT, x2: W, y1: y(highest * share), y2: y(highest * share) }));
    drawing.append(svg("text", { x: LEFT - 8, y: y(highest * share) + 4, "text-anchor": "end" }, number(highest * share)));
  }
  const steps = points.map((point) => `L${x(point.from)} ${y(point.speed)}L${x(point.to)} ${y(point.speed)}`).join("");
  drawing.append(svg("path", { class: "area", d: `M${LEFT} ${H}${steps}L${W} ${H}Z` }));
  drawing.append(svg("path", { class: "line", d: `M${steps.slice(1)}` }));
  [0, 0.5, 1].forEach((share, i) => drawing.append(svg("text", { x: x(time * share), y: H + 16, "text-anchor": ["start", "middle", "end"][i] }, duration(time * share))));
  const times = processes > 1 ? `, in ${processes} processes` : "";
  return [drawing, element("p", { class: "quiet" }, `Tokens read and written per second; ${label}${times}.`)];
}
