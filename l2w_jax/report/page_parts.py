"""What the report is made of: its looks, narrow and wide, in light and dark, and pieces of HTML."""

import html
from collections.abc import Sequence

from l2w_jax.report.svg import Series

# Series colours are Okabe and Ito's, told apart by every kind of colour vision; the exits' bands go
# from dark to light like matplotlib's cividis.
CSS = """
:root {
  color-scheme: light dark;
  --page: #fff; --ink: #1d2430; --faint: #5b6472; --line: #d9dde3; --card: #f6f7f9;
  --wrong: #b3261e;
  --s0: #0072b2; --s1: #d55e00; --s2: #007a5a; --s3: #b0568a; --s4: #8a6d00; --s5: #3b82a6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14181f; --ink: #e6e9ee; --faint: #a2abb8; --line: #333b47; --card: #1c222b;
    --wrong: #ff8a80;
    --s0: #56b4e9; --s1: #ff9b50; --s2: #2bc59b; --s3: #e39ac4; --s4: #f0e442; --s5: #9ad1ee;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 76rem;
  background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: 1.6rem; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
p { margin: .3rem 0 .8rem; color: var(--faint); max-width: 46rem; }
.grid {
  display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr));
}
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .8rem; min-width: 0;
}
.card > h3:first-child { margin-top: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td {
  padding: .25rem .7rem .25rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line);
}
th:first-child, td:first-child { text-align: left; }
th {
  color: var(--faint); font-weight: 600; vertical-align: bottom;
  white-space: normal; overflow-wrap: normal;
}
svg { display: block; width: 100%; max-width: 40rem; height: auto; }
svg text { fill: var(--ink); font-size: 12px; }
@media (max-width: 30rem) { svg text { font-size: 15px; } }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .line { fill: none; stroke-width: 2; }
svg .band { stroke: var(--page); stroke-width: .7; }
.legend {
  display: flex; flex-wrap: wrap; gap: .2rem 1rem;
  margin: .3rem 0; padding: 0; list-style: none; font-size: .85rem;
}
.legend i {
  display: inline-block; width: 1.3rem; height: 0; margin-right: .4rem;
  vertical-align: middle; border-top: 3px solid;
}
.legend i.dashed { border-top-style: dashed; }
.legend i.band { height: .8rem; border: 0; }
.examples { display: flex; flex-wrap: wrap; gap: .4rem; margin-bottom: .4rem; }
figure {
  margin: 0; width: 60px; text-align: center;
  font-size: .72rem; line-height: 1.25;
}
figure img {
  width: 58px; height: 58px; object-fit: contain;
  border-radius: 6px; border: 2px solid var(--line);
}
figure.wrong img { border-color: var(--wrong); }
figure.wrong figcaption { color: var(--wrong); }
""" + "".join(
    f"svg .line.s{i} {{ stroke: var(--s{i}); }} svg .mark.s{i} {{ fill: var(--s{i}); }}"
    f" .legend i.s{i} {{ border-color: var(--s{i}); }}\n"
    for i in range(6)
)

SERIES_COLOURS = 6


def band_css(colours: list[str]) -> str:
    """The classes e0, e1 ... of the bands of a stacked chart."""
    return "".join(
        f"svg .e{k}, .legend i.e{k} {{ fill: {colour}; background: {colour}; }}\n"
        for k, colour in enumerate(colours)
    )


def section(title: str, explanation: str, content: str) -> str:
    """A section of the page; explanation and content are HTML."""
    paragraph = f"<p>{explanation}</p>" if explanation else ""
    return f"<section><h2>{title}</h2>{paragraph}{content}</section>"


def legend(series: Sequence[Series]) -> str:
    """What the colours and dashes of a chart stand for."""
    items = "".join(
        f'<li><i class="s{s.colour}{" dashed" if s.dashed else ""}"></i>{text(s.label)}</li>'
        for s in series
    )
    return f'<ul class="legend">{items}</ul>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain texts, that scrolls by itself where the page is narrow."""
    head = "".join(f"<th>{text(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def text(plain: str) -> str:
    """Plain text as HTML."""
    return html.escape(plain, quote=True)
