"""The page's style sheet: system fonts, one column, light and dark from the reader's own preference."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #2a2f38; --muted: #656c79; --faint: #d9dde3;
  --series-1: #0072b2; --series-2: #d55e00; --series-3: #009e73; --series-4: #b8568f; --series-5: #b07d00;
  --series-6: #3b93c9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171c; --card: #1c2027; --ink: #e3e6eb; --muted: #9aa2b0; --faint: #353b46;
    --series-1: #4da9e6; --series-2: #f58a3c; --series-3: #2fc49a; --series-4: #df92bd; --series-5: #e0b030;
    --series-6: #a5d8f3;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .25rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 0 0 .25rem; }
h3 { font-size: .95rem; margin: 1rem 0 .25rem; }
p { margin: 0 0 .5rem; max-width: 46rem; }
section { background: var(--card); border: 1px solid var(--faint); border-radius: .6rem; padding: 1.1rem 1.25rem;
  margin-top: 1.25rem; }
.note, figcaption, small { color: var(--muted); font-size: .875rem; }
.found { margin: 1rem 0 .3rem; max-width: none; }
ul { margin: 0; padding-left: 1.2rem; }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid var(--series-1); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .6rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--faint); }
thead th { font-weight: 600; font-size: .8rem; line-height: 1.3; color: var(--muted); vertical-align: bottom; }
th:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 600; min-width: 10.5rem; }
tbody tr:last-child > * { border-bottom: 0; }
td small, th small { display: block; font-size: .78rem; font-weight: 400; white-space: nowrap; }
figure { margin: .75rem 0 0; }
figcaption { margin-top: .5rem; max-width: 46rem; }
svg { display: block; width: 100%; min-width: 36rem; height: auto; fill: currentColor; stroke-linejoin: round; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.25rem; margin: .5rem 0 0; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
pre { margin: 0; padding: .75rem; background: var(--page); border-radius: .4rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font: .85rem/1.5 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media print { body { background: none; } section { break-inside: avoid; } }
"""
