// Columns of numbers stand to the right. A click on a column's header sorts the table by it, a second one the other way
// round. Without scripts a table is as pandas wrote it.
"use strict";
const NUMBER = /^[<>≤≥~]?\s*([-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:e[-+]?\d+)?)\s*(%?)(?!\S)/i;
const ALONE = /^[<>≤≥~]?\s*[-+−]?(?:[\d.,]+(?:e[-+]?\d+)?\s?%?|inf)$/i;
const NOTHING = new Set(["", "nan", "none", "<na>", "—"]);

function number(text) { // "12%" is 0.12, "0.4 to 0.6" is 0.4, "> 450" is 450, text is NaN
  if (/^-?inf$/.test(text)) return text[0] === "-" ? -Infinity : Infinity;
  const [, digits, percent] = text.match(NUMBER) ?? [];
  return digits ? Number(digits.replaceAll(",", "").replace("−", "-")) / (percent ? 100 : 1) : NaN;
}

function sort(table, column, turn) {
  const rows = [...table.tBodies[0].rows].map((row) => ({ row, text: row.cells[column].textContent.trim() }));
  const [empty, full] = [true, false].map((is) => rows.filter((r) => NOTHING.has(r.text.toLowerCase()) === is));
  const numbers = full.every((r) => !Number.isNaN(number(r.text)));
  const order = numbers
    ? (a, b) => Math.sign(number(a.text) - number(b.text)) || 0 // two infinities are equal
    : (a, b) => a.text.localeCompare(b.text, "en", { numeric: true });
  full.sort((a, b) => turn * order(a, b));
  table.tBodies[0].append(...[...full, ...empty].map((r) => r.row)); // what is not there comes last
}

function joinNames(table) { // pandas writes an index's name into a row of its own: put it beside the columns' names
  const [columns, names] = [...table.tHead.rows].slice(-2).map((row) => [...row.cells]);
  const said = (cell) => cell.textContent.trim();
  if (columns.length !== names?.length || columns.some((cell, i) => said(cell) && said(names[i]))) return;
  columns.forEach((cell, i) => { cell.textContent = said(cell) || said(names[i]); });
  names[0].parentNode.remove();
}

function markNumbers(table, head, column) {
  const cells = [...table.tBodies[0].rows].map((row) => row.cells[column]).filter(Boolean);
  const texts = cells.map((cell) => cell.textContent.trim().toLowerCase()).filter((text) => !NOTHING.has(text));
  if (cells[0]?.tagName === "TD" && texts.length && texts.every((text) => ALONE.test(text)))
    for (const cell of [head, ...cells]) cell.classList.add("number");
}

for (const table of document.querySelectorAll("table:has(thead):has(tbody)")) {
  joinNames(table);
  const heads = [...[...table.tHead.rows].at(-1).cells];
  heads.forEach((head, column) => {
    markNumbers(table, head, column);
    const button = document.createElement("button");
    if (!head.textContent.trim()) button.ariaLabel = "rows";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const turn = head.ariaSort === "ascending" ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.ariaSort = turn > 0 ? "ascending" : "descending";
      sort(table, column, turn);
    });
  });
}
