"""The look of the page: one column of cards, light and dark, from phone to desk."""

STYLE = """
:root {
  color-scheme: light;
  --page: #f5f6f8; --paper: #ffffff; --ink: #1b2430; --muted: #6b7685; --grid: #e4e8ee; --edge: #dfe4ea;
  --accent: #1f5fbf; --second: #c4541c; --band: rgba(196, 84, 28, 0.14); --warn: rgba(214, 64, 69, 0.10);
  --warn-ink: #b3262c; --low: #f3f6fa; --mid: #8db4e2; --high: #174a94;
}
:root[data-theme="dark"] {
  color-scheme: dark;
  --page: #11161d; --paper: #1a212b; --ink: #e4e9f0; --muted: #94a0b0; --grid: #2b3542; --edge: #2b3542;
  --accent: #6ea8ff; --second: #ff9a5c; --band: rgba(255, 154, 92, 0.17); --warn: rgba(255, 107, 107, 0.14);
  --warn-ink: #ff8f8f; --low: #202936; --mid: #2b568f; --high: #4f8fe6;
}
@media (prefers-color-scheme: dark) {
  :root:not([data-theme="light"]) {
    color-scheme: dark;
    --page: #11161d; --paper: #1a212b; --ink: #e4e9f0; --muted: #94a0b0; --grid: #2b3542; --edge: #2b3542;
    --accent: #6ea8ff; --second: #ff9a5c; --band: rgba(255, 154, 92, 0.17); --warn: rgba(255, 107, 107, 0.14);
    --warn-ink: #ff8f8f; --low: #202936; --mid: #2b568f; --high: #4f8fe6;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: no-preference) { html { scroll-behavior: smooth; } }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
.wrap { max-width: 1120px; margin: 0 auto; padding: 24px 20px 64px; }
header { display: flex; gap: 16px; align-items: flex-start; justify-content: space-between; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.12rem; margin: 0 0 4px; }
.sub { color: var(--muted); margin: 6px 0 0; overflow-wrap: anywhere; }
.status {
  display: inline-block; border-radius: 99px; padding: 0 10px; font-size: 0.85rem; border: 1px solid var(--edge);
}
.status.failed { color: var(--warn-ink); border-color: currentColor; }
button, input, select {
  font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--edge); border-radius: 8px;
  padding: 5px 10px; min-height: 36px;
}
button { cursor: pointer; }
button:hover { border-color: var(--muted); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
nav { margin: 18px 0; display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 0.9rem; }
a { color: var(--accent); }
.cards { display: grid; grid-template-columns: repeat(4, 1fr); gap: 14px; margin: 22px 0 14px; }
.card, section { background: var(--paper); border: 1px solid var(--edge); border-radius: 12px; }
.card { padding: 14px 16px; }
.card b { display: block; font-size: 1.9rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.card span { font-weight: 600; }
.card small { display: block; color: var(--muted); line-height: 1.4; margin-top: 4px; }
section { padding: 18px 20px; margin-top: 14px; min-width: 0; }
section > p { margin: 0 0 10px; color: var(--muted); font-size: 0.94rem; max-width: 75ch; }
.story p { color: var(--ink); font-size: 1rem; margin: 0 0 8px; max-width: 100ch; }
.story p:last-child { margin-bottom: 0; }
.two { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px; }
.two > section { margin-top: 14px; }
.scroll { overflow-x: auto; }
.chart { width: 100%; }
.tools { display: flex; flex-wrap: wrap; gap: 8px 12px; align-items: center; margin: 10px 0; font-size: 0.92rem; }
.tools input[type="search"] { flex: 1 1 180px; min-width: 0; }
.tools label { display: inline-flex; gap: 6px; align-items: center; }
.tools input[type="checkbox"] { min-height: 0; width: 18px; height: 18px; }
.table { overflow: auto; max-height: 560px; border: 1px solid var(--edge); border-radius: 8px; }
.table.whole { max-height: none; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.name { white-space: normal; overflow-wrap: anywhere; min-width: 9ch; max-width: 42ch; }
thead th { position: sticky; top: 0; background: var(--paper); z-index: 1; box-shadow: inset 0 -1px var(--edge); }
th button { border: 0; padding: 2px 0; min-height: 0; font-weight: 600; background: none; white-space: nowrap; }
th button::after { content: "\\2195"; color: var(--muted); margin-left: 4px; opacity: 0.5; }
th[aria-sort="ascending"] button::after { content: "\\2191"; opacity: 1; color: var(--accent); }
th[aria-sort="descending"] button::after { content: "\\2193"; opacity: 1; color: var(--accent); }
tr.worst td { background: var(--warn); }
tr.best td, td.best { font-weight: 700; }
tbody tr:last-child td { border-bottom: 0; }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 6px; }
.command { display: flex; gap: 8px; align-items: flex-start; margin-bottom: 12px; }
pre {
  margin: 0; padding: 10px 12px; background: var(--page); border-radius: 8px; overflow-x: auto; flex: 1; min-width: 0;
  font: 0.86rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
}
.keys { columns: 3 260px; column-gap: 28px; font-size: 0.88rem; margin: 8px 0 0; }
.keys div { break-inside: avoid; display: flex; justify-content: space-between; gap: 12px; padding: 3px 0; }
.keys dt { color: var(--muted); }
.keys dd { margin: 0; text-align: right; overflow-wrap: anywhere; min-width: 0; }
.keys .set dd { font-weight: 700; color: var(--accent); }
noscript p { color: var(--warn-ink); }
footer { color: var(--muted); font-size: 0.85rem; margin-top: 24px; }
@media (max-width: 820px) {
  .cards { grid-template-columns: repeat(2, 1fr); gap: 10px; }
  .two { grid-template-columns: minmax(0, 1fr); gap: 0; }
}
@media (max-width: 520px) {
  .wrap { padding: 16px 10px 40px; }
  h1 { font-size: 1.35rem; }
  section { padding: 14px 12px; }
  .card { padding: 10px 12px; }
  .card b { font-size: 1.45rem; }
  th, td { padding: 6px 8px; }
}
@media print {
  .tools, nav, .toggle, .copy { display: none; }
  .table { max-height: none; overflow: visible; }
  section { break-inside: avoid; }
}
"""
