"""How the report looks, on screen and on paper: one style sheet, no font or image from outside.

A kind of evidence has a colour and a border of its own, so that kinds differ in grey too.
"""

STYLE = """
:root { --line: #d5d8dd; --soft: #f5f6f8; --ink: #1d2129; --dim: #606875; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .8rem; padding-bottom: .25rem;
  border-bottom: 2px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.7rem 0 .5rem; }
p { margin: .5rem 0; max-width: 60rem; }
.dim, .notes { color: var(--dim); font-size: .88rem; }
nav a { margin-right: 1rem; white-space: nowrap; }
a { color: #0b5cad; }
code { font: .86rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: .7rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
thead th { background: var(--soft); border-bottom: 2px solid var(--line); vertical-align: bottom; }
tbody th { font-weight: 600; }
tr.first > * { border-top: 2px solid var(--line); }
td.number { text-align: right; white-space: nowrap; }
.cell { display: inline-block; padding: 0 .4rem; border-left: 4px solid transparent;
  white-space: nowrap; }
.measured { background: #dff3e4; border-left: 4px solid #1a7f37; font-weight: 600; }
.dilated { background: #eef7dd; border-left: 4px double #5d8a1b; }
.simulated { background: #e3eefc; border-left: 4px dashed #1f6fd0; font-style: italic; }
.computed { background: #f3e9fa; border-left: 4px dotted #8444b5; }
.reported { background: #f1f1f1; border-left: 4px solid #9aa0a8; }
.absent { color: var(--dim); border-left: 4px solid transparent; }
.verdict { display: inline-block; padding: .05rem .55rem; border-radius: 1rem; font-weight: 600;
  white-space: nowrap; font-size: .85rem; border: 1px solid; }
.reproduced { color: #116329; background: #dff3e4; border-color: #1a7f37; }
.not-reproduced { color: #9a1f1f; background: #fde4e1; border-color: #b3332b; }
.undecided { color: #6b5200; background: #fff4cc; border-color: #b08800; }
.basis { border-style: dashed; }
.claim { border: 1px solid var(--line); border-radius: 6px; padding: .7rem 1rem; margin: .9rem 0;
  break-inside: avoid; }
.claim h3 { margin: 0 0 .3rem; }
.problem { background: #fde4e1; border-left: 4px solid #b3332b; padding: .5rem .8rem; }
figure { margin: 1rem 0; break-inside: avoid; }
figure img { max-width: 100%; border: 1px solid var(--line); padding: .5rem; background: #fff; }
figcaption { color: var(--dim); font-size: .88rem; }
summary { cursor: pointer; color: #0b5cad; font-size: .88rem; }
ul { margin: .4rem 0; padding-left: 1.3rem; }
@media print {
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  body { font-size: 9.5pt; } main { max-width: none; padding: 0; } nav { display: none; }
  .wide { overflow: visible; } table { font-size: 8pt; } thead { display: table-header-group; }
  tr { break-inside: avoid; } .cell, td.number { white-space: normal; }
  h2, h3 { break-after: avoid; }
}
"""
