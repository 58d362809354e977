"""How a page looks: light or dark as the reader's system is, on phones and on paper."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf7; --card: #ffffff; --ink: #22252b; --soft: #62676f; --line: #e2dfd7;
  --edge: #d3cfc5; --path: #0b7a6b; --path-soft: #e3f1ee; --bar: #aab0b8; --warn: #96580b;
  --on-path: #ffffff;
  --serif: ui-serif, "Iowan Old Style", Palatino, "Palatino Linotype", Georgia, serif;
  --sans: ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181c; --card: #1e2126; --ink: #e4e4e1; --soft: #a0a5ad; --line: #31353c;
    --edge: #4a5059; --path: #5cc9b5; --path-soft: #1c312f; --bar: #5d636c; --warn: #e2ab62;
    --on-path: #10211e;
  }
}
* { box-sizing: border-box; }
html { font-size: 17px; -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.6 var(--sans);
  overflow-wrap: anywhere;
}
main { max-width: 46rem; margin: 0 auto; padding: 2rem 1.1rem 3rem; }
h1, h2, h3, p, ol, ul, dl, dd, figure { margin: 0; padding: 0; }
ol, ul { list-style: none; }
a { color: inherit; }
h2 { font-size: 1.2rem; line-height: 1.3; font-weight: 650; margin-top: 3.2rem; }
h3 { font-size: 1rem; line-height: 1.4; font-weight: 650; }
.soft, .facts { color: var(--soft); font-size: .94rem; }
.warn { color: var(--warn); }
.text { font-family: var(--serif); font-size: 1.06rem; white-space: pre-wrap; }

.asked { display: grid; gap: 1.4rem; }
.asked img {
  display: block; max-width: 100%; height: auto; max-height: 26rem; width: auto;
  border-radius: 10px; border: 1px solid var(--line); background: #fff;
}
h1 {
  font: 600 1.55rem/1.3 var(--serif); white-space: pre-wrap; text-wrap: balance;
}
.answer {
  margin-top: 1.2rem; padding: .9rem 1.1rem 1rem; border-radius: 10px;
  background: var(--path-soft); border-left: 4px solid var(--path);
}
.answer h2 { margin: 0; font-size: .94rem; font-weight: 600; color: var(--path); }
.answer .text { font-size: 1.6rem; line-height: 1.35; font-weight: 600; }
.answer .text.long { font-size: 1.15rem; line-height: 1.5; font-weight: 500; }
@media (min-width: 44rem) {
  .asked.pictured { grid-template-columns: minmax(0, 5fr) minmax(0, 6fr); align-items: start; }
}

.taken { margin-top: 1.2rem; }
.taken > li { position: relative; padding: 0 0 1.5rem 1.6rem; }
.taken > li:last-child { padding-bottom: 0; }
.taken > li::before { content: ""; position: absolute; left: .06rem; top: .38rem; width: .7rem;
  height: .7rem; border-radius: 50%; background: var(--path); }
.taken > li::after { content: ""; position: absolute; left: calc(.41rem - 1px); top: .7rem;
  bottom: -.7rem; width: 2px; background: var(--path); }
.taken > li:last-child::after { content: none; }
.taken .facts { margin-bottom: .25rem; }

.figures { margin-top: .4rem; }
.map { display: block; width: 100%; height: auto; margin: 1.4rem auto 0; overflow: visible; }
.map .edge { fill: none; stroke: var(--edge); stroke-width: 1.6; }
.map .edge.path { stroke: var(--path); stroke-width: 3.2; }
.map circle { stroke: var(--soft); stroke-width: 1.5; fill: var(--paper); }
.map circle.kept { fill: var(--bar); }
.map circle.path { fill: var(--path); stroke: var(--path); }
.map circle.cut { stroke: var(--warn); stroke-dasharray: 3 2; }
.map text { font-family: var(--sans); fill: var(--soft); }
.map .row, .map text.back { font-size: calc(13px * var(--scale)); }
@media (min-width: 40rem) { .map .row, .map text.back { font-size: 14px; } }
.map .row { font-weight: 600; dominant-baseline: central; }
.map text.back { fill: var(--warn); font-weight: 600; paint-order: stroke;
  stroke: var(--paper); stroke-width: 5px; }
.map path.back { fill: none; stroke: var(--warn); stroke-width: 1; stroke-dasharray: 2 4; }
.map .number { font-size: 9.5px; text-anchor: middle; pointer-events: none; fill: var(--ink); }
.map .number.path { fill: var(--on-path); font-weight: 700; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin-top: .9rem;
  justify-content: center; color: var(--soft); font-size: .94rem; }
.legend span::before { content: ""; display: inline-block; width: .75rem; height: .75rem;
  border-radius: 50%; border: 1.5px solid var(--soft); margin-right: .45rem;
  vertical-align: -.06rem; }
.legend .path::before { background: var(--path); border-color: var(--path); }
.legend .kept::before { background: var(--bar); }
.legend .cut::before { border: 1.5px dashed var(--warn); }
@media (max-width: 40rem) { .map.dense .number { display: none; } }

.round { margin-top: 2rem; }
.round > .soft { margin-top: .1rem; }
.candidates { margin-top: .6rem; display: grid; gap: .5rem; }
.candidates > li { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  border-left: 4px solid var(--line); scroll-margin: 1rem; }
.candidates > li.kept { border-left-color: var(--bar); }
.candidates > li.path { border-left-color: var(--path); background: var(--path-soft); }
.candidates > li:target { outline: 2px solid var(--path); outline-offset: 2px; }
summary { padding: .6rem .9rem; cursor: pointer; list-style: none; border-radius: 10px; }
summary::-webkit-details-marker { display: none; }
summary:focus-visible { outline: 2px solid var(--path); }
.head { display: flex; flex-wrap: wrap; gap: 0 .8rem; align-items: baseline; }
.head .name { font-weight: 650; min-width: 1.6rem; font-variant-numeric: tabular-nums; }
.head .from { color: var(--soft); font-size: .94rem; }
.head .score { display: inline-flex; align-items: center; gap: .5rem;
  font-variant-numeric: tabular-nums; }
.bar { position: relative; display: inline-block; width: 5rem; height: .45rem;
  border-radius: 1rem; background: var(--line); overflow: hidden; }
.bar > i { position: absolute; inset: 0 auto 0 0; background: var(--bar); border-radius: 1rem; }
.bar > b { position: absolute; top: 0; bottom: 0; width: 2px; background: var(--warn); }
.path .bar > i { background: var(--path); }
@media (max-width: 30rem) { .bar { width: 3.2rem; } .head { column-gap: .6rem; } }
.head .fate { margin-left: auto; color: var(--soft); font-size: .94rem; }
.path .head .fate { color: var(--path); font-weight: 600; }
.gist { color: var(--soft); font-family: var(--serif); display: -webkit-box; overflow: hidden;
  -webkit-box-orient: vertical; -webkit-line-clamp: 2; }
.path .gist, .kept .gist { color: var(--ink); }
details[open] .gist { display: none; }
.whole { padding: 0 .9rem .8rem; }
.whole .stage { color: var(--soft); font-size: .94rem; font-weight: 600; margin-top: .5rem; }
.whole .facts { margin-top: .5rem; }
.retrace { margin-top: 2rem; padding: .55rem .9rem; border-left: 4px dotted var(--warn);
  color: var(--warn); }
.retrace .soft { display: block; }

.notices { margin-top: .8rem; display: grid; gap: .3rem; }
.notices li { padding-left: .9rem; border-left: 3px solid var(--warn); }
.details { margin-top: .9rem; display: grid; grid-template-columns: minmax(0, 9rem) minmax(0, 1fr);
  gap: .35rem 1rem; }
.details dt { color: var(--soft); }
@media (max-width: 30rem) {
  .details { grid-template-columns: minmax(0, 1fr); gap: 0; }
  .details dd { margin-bottom: .5rem; }
}
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); }

@media print {
  :root { --paper: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #ccc; --edge: #bbb;
    --path: #0b7a6b; --path-soft: #fff; --bar: #999; --warn: #7a4708; --on-path: #fff; }
  html { font-size: 11pt; }
  main { max-width: none; padding: 0; }
  .candidates > li, .retrace, .taken > li { break-inside: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
  .gist { display: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
