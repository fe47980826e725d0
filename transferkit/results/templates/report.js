"use strict";

// ---- tables that sort: a click or a key on a heading; what has no value stays last -----------------------------
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if (!cell.hasAttribute("data-value")) return cell.textContent.trim().toLowerCase();
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const sign = ascending ? 1 : -1;
      const rows = [...body.rows].map((row, place) => [valueOf(row, column), place, row]);
      rows.sort(([a, i], [b, j]) => {
        if (a === null || b === null) return a === b ? i - j : a === null ? 1 : -1;
        return sign * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, {numeric: true})) || i - j;
      });
      body.append(...rows.map(([, , row]) => row));
    });
  });
}

// ---- confusion matrices: hovering, focus or the arrow keys say what a cell holds -----------------------------------------
for (const table of document.querySelectorAll("table.matrix")) {
  const status = document.getElementById(table.dataset.says);
  const idle = status.textContent;
  const rows = [...table.tBodies[0].rows].map((row) => [...row.cells].slice(1));
  const names = [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim());
  const counts = rows.map((row) => row.map((cell) => Number(cell.dataset.n)));
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const share = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)}\u202f%` : "n/a");
  let current = [0, 0];
  const bold = (text) => {
    const element = document.createElement("b");
    element.textContent = text;
    return element;
  };
  const say = (i, j) => {
    const n = counts[i][j];
    const verb = i === j ? " and rightly predicted " : ", predicted ";
    status.replaceChildren(
      "True ", bold(names[i]), verb, bold(names[j]), `: ${n} ${n === 1 ? "picture" : "pictures"}, `,
      `${share(n, sum(counts[i]))} of the ${sum(counts[i])} that are “${names[i]}”, `,
      `${share(n, sum(counts.map((row) => row[j])))} of those called “${names[j]}”.`,
    );
  };
  const move = (i, j, focus) => {
    rows[current[0]][current[1]].tabIndex = -1;
    current = [i, j];
    rows[i][j].tabIndex = 0;
    if (focus) rows[i][j].focus();
  };
  rows.forEach((row, i) => row.forEach((cell, j) => {
    cell.addEventListener("mouseenter", () => say(i, j));
    cell.addEventListener("focus", () => { move(i, j, false); say(i, j); });
    cell.addEventListener("click", () => move(i, j, true));
    cell.addEventListener("keydown", (event) => {
      const last = rows.length - 1;
      const to = {
        ArrowUp: [Math.max(0, i - 1), j], ArrowDown: [Math.min(last, i + 1), j],
        ArrowLeft: [i, Math.max(0, j - 1)], ArrowRight: [i, Math.min(last, j + 1)],
        Home: [i, 0], End: [i, last],
      }[event.key];
      if (to) {
        event.preventDefault();
        move(...to, true);
      }
    });
  }));
  table.addEventListener("mouseleave", () => {
    const focused = rows.flat().indexOf(document.activeElement);
    if (focused < 0) status.textContent = idle;
    else say(Math.floor(focused / rows.length), focused % rows.length);
  });
}

// ---- commands that copy ----------------------------------------------------------------------------------------
for (const block of document.querySelectorAll("pre.command")) {
  if (!navigator.clipboard) break;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(block.textContent.trim());
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  block.before(button);
}
