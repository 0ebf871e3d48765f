"use strict";

/** Sort the rows of a table by a column; rows without a value come last. */
function sort(table, column, descending) {
  const textOf = row => row.cells[column].textContent.trim();
  const isMissing = row => textOf(row) === "-" || textOf(row) === "";
  const rows = [...table.tBodies[0].rows], sign = descending ? -1 : 1;
  const isNumeric = rows.every(row => isMissing(row) || !isNaN(parseFloat(textOf(row))));
  const compare = isNumeric
    ? (a, b) => parseFloat(textOf(a)) - parseFloat(textOf(b)) // of "-95.2 ± 0.3", the mean
    : (a, b) => textOf(a).localeCompare(textOf(b));
  rows.sort((a, b) => isMissing(a) - isMissing(b) || sign * (isMissing(a) ? 0 : compare(a, b)));
  table.tBodies[0].append(...rows);
}

for (const button of document.querySelectorAll("th button"))
  button.addEventListener("click", () => {
    const heading = button.closest("th"), table = heading.closest("table");
    const descending = heading.ariaSort !== "descending";
    for (const other of table.querySelectorAll("th")) other.ariaSort = null;
    heading.ariaSort = descending ? "descending" : "ascending";
    sort(table, heading.cellIndex, descending);
  });
