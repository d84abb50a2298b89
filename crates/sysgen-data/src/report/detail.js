// One row, whole: its question, the tagged and the final system message, both answers, its provenance.

const HUES = { Role: 265, Content: 205, Task: 225, Action: 25, Style: 330, Background: 90, Tool: 45, Format: 170 };

/** Marks what was searched for. */
function highlighted(text, wanted) {
  if (!wanted) return [text];
  const parts = [];
  const lower = text.toLowerCase();
  // Lower case may be of another length (İ): then nothing is marked rather than the wrong thing.
  if (lower.length !== text.length) return [text];
  let from = 0;
  for (let at = lower.indexOf(wanted); at >= 0; at = lower.indexOf(wanted, from)) {
    parts.push(text.slice(from, at), element("mark", {}, text.slice(at, at + wanted.length)));
    from = at + wanted.length;
  }
  parts.push(text.slice(from));
  return parts;
}

function block(title, ...content) {
  return element("section", { class: "block" }, element("h3", {}, title), ...content);
}

/** The draft with every well-formed phrase in the colour of its tag; those that were removed struck out. */
function taggedDraft(annotated, verdicts) {
  const kept = new Map(verdicts.map((verdict) => [verdict.tag, verdict.kept]));
  const pattern = /<<(Role|Content|Task|Action|Style|Background|Tool|Format)>>([\s\S]*?)<<\/\1>>/g;
  const nodes = [];
  let from = 0;
  const outside = (text) => text && nodes.push(text.trim() ? element("span", { class: "outside" }, text) : text);
  for (const match of annotated.matchAll(pattern)) {
    outside(annotated.slice(from, match.index));
    const lost = kept.get(match[1]) === false;
    const phrase = element("span", { class: `tagged${lost ? " lost" : ""}` }, element("b", {}, match[1]), match[2].trim());
    phrase.style.setProperty("--hue", HUES[match[1]]);
    nodes.push(phrase);
    from = match.index + match[0].length;
  }
  outside(annotated.slice(from));
  return element("div", { class: "prose" }, nodes);
}

function verdictTable(verdicts) {
  const rows = verdicts.map(({ tag, label, margin, kept }) => element("tr", {},
    element("td", {}, tag), element("td", { class: label }, label),
    element("td", { class: "number" }, margin === null ? "–" : margin.toFixed(2)), element("td", {}, kept ? "kept" : "removed")));
  const head = element("tr", {}, ["Tag", "Label"].map((name) => element("th", { scope: "col" }, name)),
    element("th", { scope: "col", class: "number" }, "Margin, nats"), element("th", { scope: "col" }, "Phrases"));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, rows));
}

function answersOf(row, wanted, marks, onMarks) {
  const originals = row.sysgen.original_answers || [row.sysgen.original_answer];
  const learnt = row.messages.filter((message) => message.role === "assistant" && message.weight !== 0);
  return originals.map((original, i) => {
    const answer = learnt[i] ? learnt[i].content : "";
    const pieces = marks && original !== answer ? difference(original, answer) : null;
    const left = pieces ? sideOf(pieces, "left") : highlighted(original, wanted);
    const right = pieces ? sideOf(pieces, "right") : highlighted(answer, wanted);
    const box = element("input", { type: "checkbox", onchange: (event) => onMarks(event.target.checked) });
    box.checked = marks;
    const toggle = i ? null : element("label", { class: "switch" }, box, "mark differences");
    const name = originals.length > 1 ? `Answers, turn ${i + 1}` : "Answers";
    const note = marks && !pieces && original !== answer ? element("p", { class: "quiet" }, "Too long to be compared word by word.") : null;
    const same = original === answer ? element("p", { class: "quiet" }, "The answer to learn is the original one.") : null;
    return element("section", { class: "block" },
      element("div", { class: "answers-head" }, element("h3", {}, name), note, same, toggle),
      element("div", { class: "two" },
        element("div", {}, element("h3", {}, `Original · ${number(original.length)} characters`), element("div", { class: "prose original" }, left)),
        element("div", {}, element("h3", {}, `To learn · ${number(answer.length)} characters`), element("div", { class: "prose answer" }, right))));
  });
}

function provenance(row) {
  const { id, source, line, model, seeds, prompt_hash, tokens } = row.sysgen;
  const list = element("dl", { class: "provenance" });
  const say = (name, value, kind) => {
    if (value !== null && value !== undefined && value !== "") list.append(element("dt", {}, name), element("dd", { class: kind || "" }, String(value)));
  };
  say("Id", id);
  say("Source", `${source}, line ${line}`);
  say("Model", model);
  const named = ["draft", "verify"].filter((phase) => seeds[phase] !== null).map((phase) => `${phase} ${seeds[phase]}`);
  say("Seeds", [...named, ...seeds.respond.map((seed) => `respond ${seed}`)].join(", "), "hash");
  say("Prompt", prompt_hash, "hash");
  const used = ["draft", "verify", "respond"].map((phase) => `${phase} ${tokens[`${phase}_prompt`]} + ${tokens[phase]}`);
  say("Tokens", `${used.join(", ")} (read + written)`);
  return list;
}

function conversation(row, wanted) {
  const turns = row.messages.filter((message) => message.role !== "system");
  let last = turns.length - 1;
  while (last > 0 && turns[last].role !== "user") last--;
  const shown = turns.slice(0, last + 1);
  if (shown.length === 1) return block("Question", element("div", { class: "prose" }, highlighted(shown[0].content, wanted)));
  return block("Conversation", shown.map((message) => element("div", { class: "turn" },
    element("h3", {}, message.role + (message.weight === 0 ? ", context" : "")), element("div", { class: "prose" }, highlighted(message.content, wanted)))));
}

function rowDetail(row, wanted, marks, controls) {
  const system = row.messages[0] && row.messages[0].role === "system" ? row.messages[0].content : null;
  const { annotated, tags } = row.sysgen;
  return [
    element("div", { class: "detail-head" },
      element("button", { type: "button", class: "plain back", onclick: controls.back }, "← All rows"),
      element("h3", {}, row.sysgen.id),
      element("span", { class: "end" },
        element("button", { type: "button", class: "plain", "aria-label": "Row before", onclick: () => controls.move(-1) }, "↑"),
        element("button", { type: "button", class: "plain", "aria-label": "Row after", onclick: () => controls.move(1) }, "↓"))),
    system === null ? null : block("System message", element("div", { class: "prose system" }, highlighted(system, wanted))),
    conversation(row, wanted),
    ...answersOf(row, wanted, marks, controls.marks),
    annotated ? block("Tagged draft", taggedDraft(annotated, tags)) : null,
    tags.length ? block("Verdicts", verdictTable(tags)) : null,
    block("Where it came from", provenance(row)),
  ].filter(Boolean);
}
