// Sorting of tables by the buttons in their headings: large numbers first, then, on a second click, in reverse.
function sortKey(row, column) {
  const cell = row.cells[column];
  const stored = cell.dataset.sort;
  if (stored === "") return null; // undefined values come last in either order
  if (stored === undefined) return cell.textContent.trim();
  return Number(stored);
}

function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  return sign * (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
}

function sortBy(table, head) {
  const descending = head.getAttribute("aria-sort") === "descending" || (head.getAttribute("aria-sort") === "none" && !head.classList.contains("number"));
  const column = head.cellIndex;
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row) => [sortKey(row, column), row]);
  keyed.sort((a, b) => compare(a[0], b[0], descending ? 1 : -1));
  body.append(...keyed.map(([, row]) => row));
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", descending ? "ascending" : "descending");
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const head of table.tHead.rows[0].cells) {
    head.querySelector("button").addEventListener("click", () => sortBy(table, head));
  }
}
