"""What moves on the page: charts in the colours of the theme, a table that is sorted and filtered, a copy button."""

SCRIPT = r"""
"use strict";
(function () {
  const root = document.documentElement;
  const phone = window.matchMedia("(max-width: 520px)");
  const darkWished = window.matchMedia("(prefers-color-scheme: dark)");

  // --- charts: figures name the page's colours, `var(--ink)`; plotly.js wants the colours themselves ---
  function css(name) { return getComputedStyle(root).getPropertyValue(name).trim(); }
  function coloured(value) {
    if (value === "var(--sequential)") return [[0, css("--low")], [0.5, css("--mid")], [1, css("--high")]];
    if (typeof value === "string") {
      const named = /^var\((--[a-z]+)\)$/.exec(value);
      return named ? css(named[1]) : value;
    }
    if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map(coloured);
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, coloured(inner)]));
    }
    return value;
  }
  function layoutOf(figure, height) {
    const layout = coloured(figure.layout), grid = css("--grid"), ink = css("--ink");
    for (const key of Object.keys(layout).concat(["xaxis", "yaxis"])) {
      if (!/^[xy]axis/.test(key)) continue;
      layout[key] = Object.assign({ gridcolor: grid, zerolinecolor: grid, linecolor: grid, automargin: true },
                                  layout[key]);
      if (phone.matches) layout[key].fixedrange = true;  // a finger on a chart scrolls the page
    }
    return Object.assign({
      height: height, autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: getComputedStyle(document.body).fontFamily, size: phone.matches ? 11 : 13 },
      margin: { l: 56, r: 16, t: 16, b: 48 }, hovermode: "closest", dragmode: phone.matches ? false : "zoom",
      hoverlabel: { bgcolor: css("--paper"), bordercolor: css("--edge"), font: { color: ink } },
    }, layout);
  }
  const options = { responsive: true, displayModeBar: false };
  const places = Array.from(document.querySelectorAll(".chart"));
  function draw(place) {
    place.figure = place.figure || JSON.parse(document.getElementById("figure-" + place.id).textContent);
    const layout = layoutOf(place.figure, Number(place.dataset.height));
    return Plotly.react(place, coloured(place.figure.data), layout, options);
  }
  let turn = 0;
  async function drawAll() {
    const mine = ++turn;
    root.dataset.drawn = "no";
    for (const place of places) {
      await draw(place);
      await new Promise((resume) => setTimeout(resume));  // so that the page answers in between
      if (mine !== turn) return;
    }
    root.dataset.drawn = "yes";
    performance.mark("drawn");
  }

  // --- theme ---
  const toggle = document.querySelector(".toggle");
  function isDark() { return root.dataset.theme ? root.dataset.theme === "dark" : darkWished.matches; }
  function label() { toggle.textContent = isDark() ? "Light" : "Dark"; }
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    label();
    drawAll();
  });
  darkWished.addEventListener("change", () => { label(); drawAll(); });
  label();

  // --- table ---
  const table = document.querySelector("table.clients");
  if (table) {
    const body = table.tBodies[0], rows = Array.from(body.rows), heads = Array.from(table.tHead.rows[0].cells);
    const find = document.getElementById("find"), count = document.getElementById("count");
    const picks = Array.from(document.querySelectorAll("select[data-column]"));
    const worst = document.getElementById("worst");
    const value = (row, column) => row.cells[column].dataset.value;
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending", sign = up ? 1 : -1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      rows.sort((a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        if (x === "" || y === "") return (x === "") - (y === "");  // what is not known stays at the end
        return sign * (x - y) || a.dataset.order - b.dataset.order;
      });
      body.append(...rows);
    }));
    const filter = () => {
      const words = find.value.toLowerCase();
      let shown = 0;
      for (const row of rows) {
        const fits = row.cells[0].textContent.toLowerCase().includes(words)
          && picks.every((pick) => pick.value === "" || value(row, pick.dataset.column) === pick.value)
          && (!worst.checked || row.classList.contains("worst"));
        row.hidden = !fits;
        shown += fits;
      }
      count.textContent = shown + " of " + rows.length + " clients";
    };
    [find, worst, ...picks].forEach((tool) => {
      tool.addEventListener("input", filter);
      tool.addEventListener("change", filter);
    });
    filter();
  }

  // --- copy ---
  document.querySelectorAll(".copy").forEach((button) => button.addEventListener("click", () => {
    const text = button.parentElement.querySelector("pre");
    getSelection().selectAllChildren(text);
    document.execCommand("copy");
    getSelection().removeAllRanges();
    button.textContent = "Copied";
  }));

  drawAll();
})();
"""
