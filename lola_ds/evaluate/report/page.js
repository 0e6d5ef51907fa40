"use strict";
// Theme: the system's, until the button says otherwise (remembered where the browser allows it).
const root = document.documentElement;
const button = document.getElementById("theme");
const system = window.matchMedia("(prefers-color-scheme: dark)");

function remembered() {
  try { return localStorage.getItem("lola-ds-theme"); } catch { return null; }
}

function show(theme) {
  root.dataset.theme = theme;
  button.setAttribute("aria-pressed", String(theme === "dark"));
}

show(remembered() || (system.matches ? "dark" : "light"));
system.addEventListener("change", () => {
  if (!remembered()) show(system.matches ? "dark" : "light");
});
button.addEventListener("click", () => {
  const theme = root.dataset.theme === "dark" ? "light" : "dark";
  show(theme);
  try { localStorage.setItem("lola-ds-theme", theme); } catch { /* not remembered */ }
});

// Tables sort by a column at a press of its heading: ascending, then descending; blanks stay last.
function key(row, column) {
  const cell = row.cells[column];
  const value = cell.dataset.value;
  if (value === undefined) return cell.textContent.trim();
  return value === "" ? null : Number(value);
}

function compare(a, b) {
  return typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
}

for (const heading of document.querySelectorAll("table.sortable thead th")) {
  heading.querySelector("button").addEventListener("click", () => {
    const descending = heading.getAttribute("aria-sort") === "ascending";
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const body = heading.closest("table").tBodies[0];
    const rows = [...body.rows].map((row) => [key(row, heading.cellIndex), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return descending ? compare(b, a) : compare(a, b);
    });
    body.append(...rows.map(([, row]) => row));
  });
}
