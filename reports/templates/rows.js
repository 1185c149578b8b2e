// The rows: columns as reports/columns.py wrote them, read one value at a time.

const content = JSON.parse(document.getElementById("content").textContent);

function openColumn(encoded) {
  if ("c" in encoded) return () => encoded.c;
  if ("d" in encoded) return (row) => (encoded.i[row] < 0 ? null : encoded.d[encoded.i[row]]);
  return (row) => encoded.v[row];
}

const columns = new Map(Object.entries(content.columns).map(([name, encoded]) => [name, openColumn(encoded)]));

function value(name, row) {
  const column = columns.get(name);
  return column ? column(row) : null;
}

/** Number of a row's thumbnail, which is that of its path among the distinct paths; -1 when it has no picture. */
function thumbnailNumber(row) {
  const paths = content.columns.path;
  return paths ? paths.i[row] : -1;
}

/** Distinct values of a column that is constant or has few of them. */
function distinct(name) {
  const encoded = content.columns[name];
  if (!encoded) return [];
  return "c" in encoded ? [encoded.c] : "d" in encoded ? encoded.d : [...new Set(encoded.v)].filter((one) => one !== null);
}

/** Address of the picture's own file beside this page; null when it lies inside a tar or Parquet file. */
function originalAddress(path) {
  if (!path || path.includes("#")) return null;
  return "../" + path.split("/").map(encodeURIComponent).join("/");
}

/** The file as a command line names it: from this page's own place, so that a moved folder still works. */
function originalFile(path) {
  if (content.root) return content.root.replace(/\/$/, "") + "/" + path;
  if (location.protocol !== "file:") return path;
  const file = decodeURIComponent(new URL(originalAddress(path), location.href).pathname);
  return file.replace(/^\/([A-Za-z]:\/)/, "$1");
}

const counted = new Intl.NumberFormat("en");

/** An element with properties and children; text is always text, never markup. */
function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
