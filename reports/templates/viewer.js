// The viewer: one picture large with everything known about it.

const UPSCALE_LIMIT = 8;
const SHOWN_APART = new Set(["prompt", "negative_prompt", "status", "error_code", "error_message", "warnings", "path"]);
const OWN_COLUMNS = [
  "id", "image_index", "seed", "model", "width", "height", "num_inference_steps", "guidance_scale", "scheduler", "lora",
  "style_preset", "tags", "backend", "batch_size", "seconds", "attempts", "lane", "row_id", "sha256",
];
const viewer = document.getElementById("viewer");
const picturePane = document.getElementById("viewer-picture");
const factsPane = document.getElementById("viewer-facts");
let placeOpen = 0;

function toText(found) {
  if (Array.isArray(found) && found.every((one) => typeof one === "string")) return found.join(", ");
  return found !== null && typeof found === "object" ? JSON.stringify(found) : String(found);
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = element("textarea", { value: text, className: "visually-hidden" });
    viewer.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
}

function copyButton(label, text) {
  const button = element("button", { type: "button", className: "copy", textContent: label });
  button.addEventListener("click", async () => {
    await copyText(text);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = label), 1200);
  });
  return button;
}

function textBlock(title, text, className = "") {
  return [element("h3", { textContent: title }), element("p", { className: "words " + className, dir: "auto", textContent: text })];
}

function parameterList(names, row) {
  const known = names.filter((name) => {
    const found = value(name, row);
    return found !== null && found !== undefined && found !== "" && found !== "[]" && !(Array.isArray(found) && !found.length);
  });
  const entries = known.map((name) =>
    element("div", {}, element("dt", { textContent: name }), element("dd", { dir: "auto", textContent: toText(value(name, row)) })),
  );
  return element("dl", { className: "parameters" }, ...entries);
}

function makeActions(row) {
  const path = value("path", row);
  const actions = [copyButton("Copy prompt", value("prompt", row) ?? "")];
  if (value("seed", row) !== null) actions.push(copyButton("Copy seed", String(value("seed", row))));
  const address = originalAddress(path);
  if (address) {
    const file = originalFile(path);
    const quoted = /^[\w@%+=:,./-]+$/.test(file) ? file : `'${file.replaceAll("'", "'\\''")}'`;
    actions.push(copyButton("Copy reproduce command", `dgate reproduce ${quoted}`));
    actions.push(element("a", { href: address, target: "_blank", rel: "noopener", textContent: "Open original" }));
  }
  return element("div", { className: "actions" }, ...actions);
}

function makeFacts(row) {
  const facts = [];
  if (value("prompt", row)) facts.push(...textBlock("Prompt", value("prompt", row), "prompt"));
  if (value("negative_prompt", row)) facts.push(...textBlock("Negative prompt", value("negative_prompt", row)));
  facts.push(makeActions(row));
  const warnings = value("warnings", row) ?? [];
  if (warnings.length) facts.push(...textBlock("Warnings", warnings.join("\n"), "warning"));
  facts.push(element("h3", { textContent: "Parameters" }), parameterList(OWN_COLUMNS, row));
  const others = parameterList([...columns.keys()].filter((name) => !OWN_COLUMNS.includes(name) && !SHOWN_APART.has(name)), row);
  if (others.children.length) facts.push(element("h3", { textContent: "From the manifest" }), others);
  if (value("path", row)) facts.push(...textBlock("File", value("path", row), "path"));
  return facts;
}

/** Small pictures grow smoothly, but not until they are a blur. */
function showPicture(row) {
  const image = element("img", { alt: value("prompt", row) ?? "", width: value("width", row) ?? 512, height: value("height", row) ?? 512 });
  image.style.setProperty("--longest", `${Math.max(image.width, image.height) * UPSCALE_LIMIT}px`);
  image.style.aspectRatio = `${image.width} / ${image.height}`;
  picturePane.replaceChildren(image);
  showThumbnail(image, row);
  const address = originalAddress(value("path", row));
  if (!address) return;
  const original = new Image();
  original.onload = () => image.isConnected && (image.src = address);
  original.src = address;
}

function showFailure(row) {
  const code = element("b", { className: "code", textContent: value("error_code", row) ?? value("status", row) ?? "" });
  const message = element("p", { dir: "auto", textContent: value("error_message", row) ?? "This row has no picture." });
  picturePane.replaceChildren(element("div", { className: "told" }, code, message));
}

function showRow(place) {
  placeOpen = place;
  const row = matching[place];
  const status = value("status", row) ?? "";
  const title = element("b", { dir: "auto", textContent: value("id", row) ?? "" });
  const position = element("span", { textContent: `${counted.format(place + 1)} of ${counted.format(matching.length)}` });
  const badge = element("span", { className: "badge", textContent: status });
  document.getElementById("viewer-title").replaceChildren(title, badge, position);
  viewer.dataset.status = status;
  document.getElementById("previous").disabled = place === 0;
  document.getElementById("next").disabled = place === matching.length - 1;
  (thumbnailNumber(row) >= 0 ? showPicture : showFailure)(row);
  factsPane.replaceChildren(...makeFacts(row));
  factsPane.scrollTop = factsPane.parentElement.scrollTop = 0;
}

function openViewer(place) {
  showRow(place);
  viewer.showModal();
  factsPane.focus({ preventScroll: true }); // so that up and down scroll the parameters
}

function moveViewer(step) {
  const place = placeOpen + step;
  if (place >= 0 && place < matching.length) showRow(place);
}

viewer.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  moveViewer(step);
});
viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
viewer.addEventListener("close", () => {
  const page = Math.floor(placeOpen / content.pageSize) + 1;
  if (page !== state.page) showPage(page);
  focusTile(placeOpen % content.pageSize);
});
document.getElementById("previous").addEventListener("click", () => moveViewer(-1));
document.getElementById("next").addEventListener("click", () => moveViewer(1));
document.getElementById("close").addEventListener("click", () => viewer.close());
