// The words that differ between two texts: a longest common subsequence of words and signs.

/** Cells of the largest table; two texts of about 4,000 words. */
const LARGEST_TABLE = 16e6;

function wordsOf(text) {
  return text.match(/[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]|\s+/gu) || [];
}

/**
 * Pieces `{text, side}` in order; side is "both", "left" or "right". Null when the texts are too long.
 */
function difference(leftText, rightText) {
  const left = wordsOf(leftText);
  const right = wordsOf(rightText);
  let start = 0;
  while (start < left.length && start < right.length && left[start] === right[start]) start++;
  let end = 0;
  while (end < left.length - start && end < right.length - start && left[left.length - 1 - end] === right[right.length - 1 - end]) end++;
  // White space is no reason for a match: it is compared only with what it stands beside.
  const a = joinSpace(left.slice(start, left.length - end));
  const b = joinSpace(right.slice(start, right.length - end));
  if ((a.length + 1) * (b.length + 1) > LARGEST_TABLE) return null;
  const pieces = [];
  const add = (text, side) => {
    if (!text) return;
    const last = pieces[pieces.length - 1];
    if (last && last.side === side) last.text += text;
    else pieces.push({ text, side });
  };
  add(left.slice(0, start).join(""), "both");
  walk(a, b, add);
  add(left.slice(left.length - end).join(""), "both");
  return pieces;
}

/** Words with the white space after them. */
function joinSpace(tokens) {
  const words = [];
  for (const token of tokens) {
    if (/^\s/.test(token)) {
      if (words.length) words[words.length - 1].space += token;
      else words.push({ word: "", space: token });
    } else words.push({ word: token, space: "" });
  }
  return words;
}

function walk(a, b, add) {
  const width = b.length + 1;
  const table = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      table[i * width + j] = a[i].word === b[j].word
        ? table[(i + 1) * width + j + 1] + 1
        : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
    }
  }
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i].word === b[j].word) {
      add(a[i].word, "both");
      if (a[i].space === b[j].space) add(a[i].space, "both");
      else {
        add(a[i].space, "left");
        add(b[j].space, "right");
      }
      i++;
      j++;
    } else if (j === b.length || (i < a.length && table[(i + 1) * width + j] >= table[i * width + j + 1])) {
      add(a[i].word + a[i].space, "left");
      i++;
    } else {
      add(b[j].word + b[j].space, "right");
      j++;
    }
  }
}

/** One side of a difference as nodes. */
function sideOf(pieces, side) {
  return pieces
    .filter((piece) => piece.side === "both" || piece.side === side)
    .map((piece) => (piece.side === "both" ? piece.text : element(side === "left" ? "del" : "ins", {}, piece.text)));
}
