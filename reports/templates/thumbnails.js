// Thumbnails: the first chunk lies in the page, the others in files beside it that are loaded when a tile comes near.

const CHUNKS_KEPT = 32;
const chunks = new Map([[1, Promise.resolve(JSON.parse(document.getElementById("first-chunk").textContent))]]);
const arrivals = new Map();

window.dgateThumbnails = (number, thumbnails) => arrivals.get(number)?.(thumbnails);

function loadChunk(number) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `thumbnails-${String(number).padStart(4, "0")}.js`;
    script.onload = () => script.remove();
    script.onerror = () => {
      script.remove();
      chunks.delete(number);
      reject(new Error(`${script.getAttribute("src")} is not beside this page`));
    };
    arrivals.set(number, resolve);
    document.head.append(script);
  });
}

function openChunk(number) {
  const chunk = chunks.get(number) ?? loadChunk(number);
  chunks.delete(number);
  chunks.set(number, chunk);
  for (const old of chunks.keys()) {
    if (chunks.size <= CHUNKS_KEPT) break;
    if (old !== 1) chunks.delete(old);
  }
  return chunk;
}

/** A data address of a row's thumbnail; null when its picture could not be read. */
async function openThumbnail(row) {
  const number = thumbnailNumber(row);
  if (number < 0) return null;
  const chunk = await openChunk(Math.floor(number / content.chunkSize) + 1);
  const thumbnail = chunk[number % content.chunkSize];
  return thumbnail ? "data:image/webp;base64," + thumbnail : null;
}

/** Put a row's thumbnail into an image, or say beside it why there is none. */
async function showThumbnail(image, row) {
  let problem = "picture cannot be read";
  try {
    const address = await openThumbnail(row);
    if (address) {
      image.src = address;
      return;
    }
  } catch (error) {
    problem = error.message;
  }
  image.replaceWith(element("span", { className: "missing", textContent: problem }));
}
