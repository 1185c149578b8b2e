// What is shown: the state lives in the address after #, so that links, reload and the back button work.

const STATUSES = ["ok", "error", "duplicate", "skipped"];
const KEYS = ["status", "code", "model", "text", "sort"];
const state = { status: "", code: "", model: "", text: "", sort: "", page: 1 };
let matching = [];
let countByStatus = new Map();

function readState() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const key of KEYS) state[key] = given.get(key) ?? "";
  state.page = Math.max(1, Number.parseInt(given.get("page") ?? "1", 10) || 1);
}

function writeState(changes) {
  Object.assign(state, { page: 1 }, changes);
  const given = new URLSearchParams(KEYS.filter((key) => state[key]).map((key) => [key, state[key]]));
  if (state.page > 1) given.set("page", state.page);
  history.replaceState(null, "", "#" + given);
}

const haystacks = new Array(content.count);

function haystack(row) {
  haystacks[row] ??= ["id", "prompt", "tags", "style_preset", "row_id", "error_code", "error_message"]
    .map((name) => value(name, row) ?? "")
    .join("\n")
    .toLowerCase();
  return haystacks[row];
}

function findMatching() {
  const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
  countByStatus = new Map();
  matching = [];
  for (let row = 0; row < content.count; row++) {
    if (state.model && value("model", row) !== state.model) continue;
    if (words.length && !words.every((word) => haystack(row).includes(word))) continue;
    const status = value("status", row);
    countByStatus.set(status, (countByStatus.get(status) ?? 0) + 1);
    if (state.status && status !== state.status) continue;
    if (state.code && (value("error_code", row) ?? (status === "error" ? "unknown" : null)) !== state.code) continue;
    matching.push(row);
  }
  sortMatching();
}

function sortMatching() {
  if (!state.sort) return;
  const sign = state.sort === "slowest" ? -1 : 1;
  const seconds = (row) => value("seconds", row) ?? sign * Infinity; // rows without a time come last either way
  matching.sort((a, b) => sign * (seconds(a) - seconds(b)) || a - b);
}
