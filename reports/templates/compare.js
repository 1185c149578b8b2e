// The pictures: one pair large under a slider, the others of the order in a strip below.

const content = JSON.parse(document.getElementById("content").textContent);
const byId = (id) => document.getElementById(id);
const FAST_STEP = 10;
let order = null;
let place = 0;

/** An element with properties and children; text is always text, never markup. */
function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function pairAt(number) {
  return content.pairs[order.pairs[number]];
}

/** One side of the stage: its picture, or why there is none; a defect is told also where there is a picture. */
function showSide(side, found, prompt) {
  const image = byId(side);
  const told = byId(`${side}-told`);
  image.hidden = !found.picture;
  if (found.picture) image.src = found.picture;
  else image.removeAttribute("src");
  image.alt = `${side === "now" ? "This run" : "Baseline"}: ${prompt}`;
  told.textContent = found.note || "no picture";
  told.hidden = Boolean(found.picture) && !found.note;
  told.classList.toggle("alone", !found.picture);
}

function scoreRow(line) {
  const cells = [element("td", { className: "code", textContent: line.metric }), element("td", { className: "number", textContent: line.candidate || "–" })];
  if (content.hasBaseline) {
    cells.push(element("td", { className: "number", textContent: line.baseline || "–" }));
    const change = element("td", { className: "number change", textContent: line.change });
    change.dataset.direction = line.verdict;
    cells.push(change);
  }
  return element("tr", {}, ...cells);
}

function showPair(number) {
  place = number;
  const pair = pairAt(number);
  showSide("now", pair.now, pair.prompt);
  showSide("before", pair.before, pair.prompt);
  byId("prompt").textContent = pair.prompt;
  byId("identity").replaceChildren(element("span", { textContent: pair.id }), element("span", { textContent: `seed ${pair.seed}` }));
  byId("scores").replaceChildren(...pair.scores.map(scoreRow));
  byId("place").textContent = `${number + 1} of ${order.pairs.length}`;
  byId("previous").disabled = number === 0;
  byId("next").disabled = number === order.pairs.length - 1;
  for (const [index, tile] of stripTiles().entries()) {
    tile.tabIndex = index === number ? 0 : -1;
    tile.setAttribute("aria-pressed", String(index === number));
  }
}

function stripTiles() {
  return [...byId("strip").querySelectorAll("button")];
}

function smallPicture(found) {
  if (found.picture) return element("img", { src: found.picture, alt: "", decoding: "async" });
  return element("span", { className: "blank", textContent: found.note || "none" });
}

function makeTile(index, number) {
  const pair = content.pairs[index];
  const line = pair.scores.find((score) => score.metric === order.key);
  const told = line ? (content.hasBaseline && line.change) || line.candidate : pair.now.note;
  const sides = content.hasBaseline ? [smallPicture(pair.before), smallPicture(pair.now)] : [smallPicture(pair.now)];
  const tile = element("button", { type: "button", ariaLabel: `Picture ${number + 1}, ${told}: ${pair.prompt}` });
  tile.append(element("span", { className: "sides" }, ...sides), element("b", { textContent: told }), element("span", { className: "caption", dir: "auto", textContent: pair.prompt }));
  tile.addEventListener("click", () => showPair(number));
  return element("li", {}, tile);
}

function showOrder(key) {
  order = content.orders.find((one) => one.key === key);
  byId("strip").replaceChildren(...order.pairs.map(makeTile));
  showPair(0);
}

function move(step) {
  const goal = place + step;
  if (goal < 0 || goal >= order.pairs.length) return;
  showPair(goal);
  const tile = stripTiles()[goal];
  const strip = byId("strip");
  const item = tile.parentElement;
  strip.scrollTo({ left: item.offsetLeft - (strip.clientWidth - item.clientWidth) / 2, top: item.offsetTop - (strip.clientHeight - item.clientHeight) / 2 });
}

function slide() {
  const slider = byId("slider");
  byId("stage").style.setProperty("--cut", `${slider.value}%`);
  slider.setAttribute("aria-valuetext", `${slider.value} % baseline, ${100 - slider.value} % this run`);
}

function listen() {
  byId("order").addEventListener("change", () => showOrder(byId("order").value));
  byId("slider").addEventListener("input", slide);
  byId("previous").addEventListener("click", () => move(-1));
  byId("next").addEventListener("click", () => move(1));
  byId("slider").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !event.shiftKey) return;
    event.preventDefault();
    byId("slider").value = Number(byId("slider").value) + step * FAST_STEP;
    slide();
  });
  byId("strip").addEventListener("keydown", (event) => {
    const goal = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: order.pairs.length - 1 }[event.key];
    if (goal === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    move(goal - place);
    stripTiles()[place].focus();
  });
  document.addEventListener("keydown", (event) => {
    const step = { "[": -1, "]": 1 }[event.key];
    if (!step || document.activeElement.tagName === "SELECT") return;
    event.preventDefault();
    move(step);
  });
}

if (content.orders.length) {
  byId("order").replaceChildren(...content.orders.map((one) => new Option(one.label, one.key)));
  document.querySelector(".compare").classList.toggle("alone", !content.hasBaseline);
  listen();
  slide();
  showOrder(content.orders[0].key);
}
