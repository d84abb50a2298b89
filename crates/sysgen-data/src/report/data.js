// The embedded data: an overview and an index that are unpacked at once, and chunks of rows that are
// unpacked when they are looked at.

/** Bytes of unpacked rows that are kept; a data set below it is unpacked only once. */
const KEPT_BYTES = 96e6;

async function unpack(id) {
  const packed = document.getElementById(id).textContent;
  const binary = atob(packed);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

class Rows {
  constructor(perChunk) {
    this.perChunk = perChunk;
    this.kept = new Map();
    this.bytes = 0;
  }

  /** The rows of one chunk, as they stand in dataset.jsonl. */
  async chunk(number) {
    const known = this.kept.get(number);
    if (known) {
      this.kept.delete(number);
      this.kept.set(number, known);
      return known.rows;
    }
    const text = await unpack(`chunk-${number}`);
    const rows = JSON.parse(text);
    this.kept.set(number, { rows, bytes: text.length });
    this.bytes += text.length;
    for (const [oldest, chunk] of this.kept) {
      if (this.bytes <= KEPT_BYTES || oldest === number) break;
      this.kept.delete(oldest);
      this.bytes -= chunk.bytes;
    }
    return rows;
  }

  async row(i) {
    return (await this.chunk(Math.floor(i / this.perChunk)))[i % this.perChunk];
  }
}

/** Everything of a row that a person could look for, in lower case. */
function searchable(row) {
  const { id, source, annotated, original_answer, original_answers } = row.sysgen;
  const texts = row.messages.map((message) => message.content);
  return [id, source, annotated || "", original_answer, ...(original_answers || []), ...texts].join("\n").toLowerCase();
}

const LABELS = ["", "Good", "Bad", "None", "Unread"];

/** The verdict on tag number `tag`, from the index: its label and whether it was kept. */
function verdictOf(verdicts, tag) {
  const bits = (verdicts >>> (tag * 4)) & 15;
  return { label: LABELS[bits & 7], kept: bits >= 8 };
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

const numberFormat = new Intl.NumberFormat("en");
function number(value, digits = 0) {
  return digits ? value.toFixed(digits) : numberFormat.format(Math.round(value));
}
