// Sorts the table of tensors and filters it by name. Everything it needs is in the table.
"use strict";
(() => {
  const table = document.querySelector("table.tensors");
  if (!table) return;
  document.documentElement.classList.add("scripted");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const collator = new Intl.Collator("en", { numeric: true }); // layers.2 before layers.10

  const value = (row, column) => {
    const cell = row.cells[column];
    if (cell.querySelector(".unknown")) return null;
    return "numeric" in heads[column].dataset ? Number(cell.dataset.v) : cell.textContent;
  };

  const sort = (column) => {
    const sign = heads[column].ariaSort === "ascending" ? -1 : 1;
    const keyed = [...body.rows].map((row) => [value(row, column), row]);
    keyed.sort(([a], [b]) => {
      // The unknown comes last either way.
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (typeof a === "number" ? a - b : collator.compare(a, b));
    });
    body.append(...keyed.map(([, row]) => row));
    for (const head of heads) head.ariaSort = null;
    heads[column].ariaSort = sign === 1 ? "ascending" : "descending";
  };

  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.disabled = false;
    button.addEventListener("click", () => sort(column));
  });

  const search = document.getElementById("filter");
  const found = document.getElementById("found");
  const name = heads.findIndex((head) => head.classList.contains("c-name"));
  const filter = () => {
    const part = search.value.trim().toLowerCase();
    let shown = 0;
    for (const row of body.rows) {
      row.hidden = !row.cells[name].textContent.toLowerCase().includes(part);
      shown += !row.hidden;
    }
    found.textContent = part ? `${shown} of ${body.rows.length}` : "";
  };
  search.addEventListener("input", filter);
  filter(); // a reloaded page may keep what was typed

  // A link from the chart leads to its row, filtered out or not.
  const reveal = () => {
    const row = document.querySelector("tr:target");
    if (!row?.hidden) return;
    search.value = "";
    filter();
    row.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  addEventListener("click", (event) => {
    const link = event.target.closest("a");
    // Followed before: the hash will not change.
    if (link?.getAttribute("href") === location.hash) reveal();
  });
})();
