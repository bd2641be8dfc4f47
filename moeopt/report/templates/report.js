"use strict";
// A click on a heading sorts its table by that column: numbers as numbers, missing ones last.
const NUMBER = /^-?\d+(\.\d+)?$/;

function compare(a, b, direction) {
  const numeric = [NUMBER.test(a), NUMBER.test(b)];
  if (numeric[0] && numeric[1]) return direction * (parseFloat(a) - parseFloat(b));
  if (numeric[0] !== numeric[1]) return numeric[0] ? -1 : 1;
  return direction * a.localeCompare(b);
}

function sort(table, column, heading) {
  const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const body = table.tBodies[0];
  const rows = Array.from(body.rows).map((row) => [row.cells[column].textContent.trim(), row]);
  rows.sort((a, b) => compare(a[0], b[0], direction));
  body.append(...rows.map((pair) => pair[1]));
  table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
}

document.querySelectorAll("table.sortable").forEach((table) => {
  const headings = table.tHead.rows[table.tHead.rows.length - 1].cells;
  Array.from(headings).forEach((heading, column) => {
    const button = document.createElement("button");
    button.textContent = heading.textContent;
    button.addEventListener("click", () => sort(table, column, heading));
    heading.replaceChildren(button);
  });
});

const filter = document.getElementById("filter");
if (filter) {
  const rows = Array.from(document.querySelectorAll("#cells tbody tr"));
  const texts = rows.map((row) => row.textContent.toLowerCase());
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    rows.forEach((row, i) => { row.hidden = !words.every((word) => texts[i].includes(word)); });
  });
}
