// The page: toolbar and pagers bound to the state.

const SEARCH_DELAY_MS = 120;
const textField = document.getElementById("text");
const codeChip = document.getElementById("code");
const modelSelect = document.getElementById("model");
const sortSelect = document.getElementById("sort");

function pageCount() {
  return Math.max(1, Math.ceil(matching.length / content.pageSize));
}

function makePager() {
  const first = matching.length ? firstShown + 1 : 0;
  const last = Math.min(firstShown + content.pageSize, matching.length);
  const whole = counted.format(matching.length);
  const range = element("span", { className: "range", textContent: `${counted.format(first)}–${counted.format(last)} of ${whole}` });
  if (pageCount() === 1) return [range];
  const turn = (label, name, page) => {
    const button = element("button", { type: "button", textContent: label, ariaLabel: name, disabled: page < 1 || page > pageCount() });
    button.dataset.turn = name;
    button.addEventListener("click", () => turnPage(page, name, button.closest("nav")));
    return button;
  };
  const field = element("input", { type: "number", min: 1, max: pageCount(), value: state.page, ariaLabel: `Page, 1 to ${pageCount()}` });
  field.addEventListener("change", () => turnPage(Math.min(pageCount(), Math.max(1, Number.parseInt(field.value, 10) || 1))));
  return [range, turn("‹", "Previous page", state.page - 1), field, element("span", { textContent: `/ ${counted.format(pageCount())}` }), turn("›", "Next page", state.page + 1)];
}

function showPagers() {
  for (const pager of document.querySelectorAll(".pager")) pager.replaceChildren(...makePager());
  document.querySelector(".pager-end").hidden = pageCount() === 1;
}

function showPage(page) {
  writeState({ page });
  showGrid();
  showPagers();
}

/** Another page by a pager's button, which keeps the focus. */
function turnPage(page, name, pager) {
  showPage(page);
  pager?.querySelector(`[data-turn="${name}"]`)?.focus({ preventScroll: true });
  const toolbar = document.querySelector(".toolbar");
  if (toolbar.getBoundingClientRect().top <= 0) toolbar.nextElementSibling.scrollIntoView();
}

function showStatuses() {
  const total = [...countByStatus.values()].reduce((sum, count) => sum + count, 0);
  const present = STATUSES.filter((status) => distinct("status").includes(status));
  const chips = ["", ...present].map((status) => {
    const count = status ? countByStatus.get(status) ?? 0 : total;
    const chip = element("button", { type: "button", className: "chip", ariaPressed: String(state.status === status) }, status || "all", element("b", { textContent: counted.format(count) }));
    chip.dataset.status = status;
    return chip;
  });
  document.getElementById("statuses").replaceChildren(...chips);
}

function showToolbar() {
  if (document.activeElement !== textField) textField.value = state.text;
  showStatuses();
  codeChip.hidden = !state.code;
  codeChip.textContent = `${state.code} ×`;
  codeChip.ariaLabel = `Remove the filter on the code ${state.code}`;
  modelSelect.value = state.model;
  sortSelect.value = state.sort;
}

function show() {
  findMatching();
  state.page = Math.min(state.page, pageCount());
  showToolbar();
  showGrid();
  showPagers();
  document.getElementById("found").textContent = `${counted.format(matching.length)} shown`;
  const empty = document.getElementById("empty");
  empty.hidden = matching.length > 0;
  empty.querySelector("p").textContent = content.count ? "No row matches these filters." : "This run has no rows yet.";
  document.getElementById("reset").hidden = !content.count;
}

function change(changes) {
  writeState(changes);
  show();
}

function fillModels() {
  const models = distinct("model");
  modelSelect.hidden = models.length < 2;
  modelSelect.replaceChildren(new Option("All models", ""), ...models.map((model) => new Option(model, model)));
}

let waiting;
textField.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => change({ text: textField.value.trim() }), SEARCH_DELAY_MS);
});
document.getElementById("statuses").addEventListener("click", (event) => {
  const chip = event.target.closest(".chip");
  if (!chip) return;
  const status = chip.dataset.status;
  change({ status, code: "" });
  document.querySelector(`#statuses [data-status="${status}"]`).focus();
});
codeChip.addEventListener("click", () => {
  change({ code: "" });
  textField.focus();
});
modelSelect.addEventListener("change", () => change({ model: modelSelect.value }));
sortSelect.addEventListener("change", () => change({ sort: sortSelect.value }));
document.getElementById("reset").addEventListener("click", () => {
  textField.value = "";
  change({ status: "", code: "", model: "", text: "" });
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || viewer.open || /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) return;
  event.preventDefault();
  textField.focus();
});
window.addEventListener("hashchange", () => {
  readState();
  show();
});

fillModels();
readState();
show();
