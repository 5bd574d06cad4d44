"use strict";
// Tables that sort, links that open what they point at, and all of it open on paper. No network.
const valueOf = (cell) => {
  const text = cell.dataset.value ?? cell.textContent.trim();
  const number = Number.parseFloat(text.replace(",", "").replace("−", "-"));
  return Number.isNaN(number) ? text.toLowerCase() : number;
};

// where there is no number among numbers, the row stands last, whichever way is up
const compare = (a, b, sign) =>
  typeof a === "number" && typeof b === "number" ? sign * (a - b)
  : typeof a === "number" ? -1
  : typeof b === "number" ? 1
  : sign * a.localeCompare(b);

const sortBy = (table, column, descending) => {
  const body = table.tBodies[0], sign = descending ? -1 : 1;
  const key = (row) => valueOf(row.cells[column]);
  body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b), sign)));
  [...table.tHead.rows[0].cells].forEach((head, i) =>
    head.setAttribute("aria-sort", i !== column ? "none" : descending ? "descending" : "ascending"));
};

for (const table of document.querySelectorAll("table.sortable"))
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    button.title = "sort by this column";
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      // numbers are read from the largest down first, words from A to Z
      const sorted = head.getAttribute("aria-sort"), numbers = head.classList.contains("number");
      sortBy(table, column, sorted === "none" ? numbers : sorted === "ascending");
    });
  });

const openTarget = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  target.scrollIntoView();
};
addEventListener("hashchange", openTarget);
openTarget();

for (const one of document.querySelectorAll("details[id]"))
  one.addEventListener("toggle", () => {
    if (one.open) history.replaceState(null, "", `#${one.id}`);
  });

let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const one of closed) one.open = true;
});
addEventListener("afterprint", () => {
  for (const one of closed) one.open = false;
});
document.body.dataset.state = "ready";
