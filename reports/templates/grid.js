// The grid: one page of tiles, each a button; pictures come when a tile is near the window.

const CAPTION_LENGTH = 160;
const grid = document.getElementById("grid");
let firstShown = 0;

const nearby = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      nearby.unobserve(entry.target);
      showThumbnail(entry.target, Number(entry.target.dataset.row));
    }
  },
  { rootMargin: "600px" },
);

function shorten(text) {
  return text.length > CAPTION_LENGTH ? text.slice(0, CAPTION_LENGTH) + "…" : text;
}

function makeFrame(row, status) {
  if (thumbnailNumber(row) >= 0) {
    const image = element("img", { alt: "", decoding: "async", width: value("width", row) ?? 1, height: value("height", row) ?? 1 });
    image.dataset.row = row;
    nearby.observe(image);
    return element("span", { className: "frame" }, image);
  }
  const message = shorten(value("error_message", row) ?? "no picture");
  const code = element("b", { className: "code", textContent: value("error_code", row) ?? status });
  return element("span", { className: "frame told" }, code, element("span", { dir: "auto", textContent: message }));
}

function makeTile(row, place) {
  const status = value("status", row) ?? "";
  const caption = element("span", { className: "caption", dir: "auto", textContent: shorten(value("prompt", row) ?? "") });
  const tile = element("button", { type: "button", className: "tile", tabIndex: place === 0 ? 0 : -1 }, makeFrame(row, status), caption);
  tile.dataset.place = place;
  tile.dataset.status = status;
  if (status !== "ok") tile.append(element("span", { className: "badge", textContent: status }));
  return element("li", {}, tile);
}

/** Give the tiles of a page the shape of its middle picture, so that a run of one size shows without bars. */
function shapeTiles(shown) {
  const shapes = shown.filter((row) => thumbnailNumber(row) >= 0).map((row) => value("width", row) / value("height", row));
  const middle = shapes.sort((a, b) => a - b)[shapes.length >> 1] || 1;
  grid.style.setProperty("--ratio", Math.min(16 / 9, Math.max(3 / 4, middle)).toFixed(4));
}

function showGrid() {
  nearby.disconnect();
  firstShown = (state.page - 1) * content.pageSize;
  const shown = matching.slice(firstShown, firstShown + content.pageSize);
  shapeTiles(shown);
  grid.replaceChildren(...shown.map(makeTile));
}

function tiles() {
  return grid.querySelectorAll(".tile");
}

function focusTile(place) {
  const all = tiles();
  const target = all[Math.min(Math.max(place, 0), all.length - 1)];
  if (!target) return;
  for (const tile of all) tile.tabIndex = -1;
  target.tabIndex = 0;
  target.focus();
}

function columnsShown() {
  return getComputedStyle(grid).gridTemplateColumns.split(" ").length;
}

grid.addEventListener("keydown", (event) => {
  const tile = event.target.closest(".tile");
  if (!tile || event.ctrlKey || event.metaKey || event.altKey) return;
  const place = Number(tile.dataset.place);
  const last = tiles().length - 1;
  const step = columnsShown();
  const goal = { ArrowLeft: place - 1, ArrowRight: place + 1, ArrowUp: place - step, ArrowDown: place + step, Home: 0, End: last }[event.key];
  if (goal === undefined) return;
  event.preventDefault();
  if (goal >= 0 && goal <= last) focusTile(goal);
});

grid.addEventListener("click", (event) => {
  const tile = event.target.closest(".tile");
  if (tile) openViewer(firstShown + Number(tile.dataset.place));
});
