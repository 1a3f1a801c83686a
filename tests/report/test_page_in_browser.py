"""The report in a browser shows its figures, fits phone and desktop, and reads well in the dark."""

import dataclasses
import html
import json
import re
import shutil
import subprocess

import pytest
from written_runs import write_run

from l2w_jax.evaluation.results import Evaluation
from l2w_jax.files import write_json
from l2w_jax.report.write import write_report

PHONE, DESKTOP = 390, 1280
SMALLEST_LETTERS = 10.5  # pixels

# WCAG 2.2, success criteria 1.4.3 (text) and 1.4.11 (graphics).
LEAST_TEXT_CONTRAST, LEAST_LINE_CONTRAST = 4.5, 3.0

# A browser's window cannot be as narrow as a phone, but a frame in it can. It is tall enough for
# the whole page, so that no scroll bar takes of its width.
WRAPPER = """<!doctype html><html><head><meta charset="utf-8"></head><body>
<iframe style="width: WIDTHpx; height: 30000px; border: 0; color-scheme: light dark"
 srcdoc="PAGE"></iframe><pre id="measured"></pre><script>
const frame = document.querySelector("iframe");
function channels(colour) { return colour.match(/[\\d.]+/g).map(Number); }
function luminance(colour) {
  const [r, g, b] = channels(colour).slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
frame.onload = () => {
  const page = frame.contentDocument, style = e => frame.contentWindow.getComputedStyle(e);
  const all = (selector, inside = page) => [...inside.querySelectorAll(selector)];
  const box = e => e.getBoundingClientRect();
  function background(e) {
    while (channels(style(e).backgroundColor)[3] === 0) e = e.parentElement;
    return style(e).backgroundColor;
  }
  function contrast(e, property, behind = e.closest("svg") || e) {
    const [one, other] = [style(e)[property], background(behind)].map(luminance);
    return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  }
  const texts = all("body *").filter(e => !["title", "SCRIPT"].includes(e.tagName)
    && [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.textContent.trim()));
  const tip = page.querySelector(".tip");
  const told = () => style(tip).display === "none" ? null : {
    text: tip.innerText, inside: box(tip).left >= 0
      && box(tip).right <= page.documentElement.clientWidth};
  function at(chart, type, beside) {
    const svg = all("svg")[chart], mark = svg.querySelector(".mark, .at"), place = box(mark);
    svg.dispatchEvent(new frame.contentWindow.PointerEvent(type, {bubbles: true,
      pointerType: "touch", clientX: place.left - beside, clientY: place.top + place.height / 2}));
    return told();
  }
  function focused() {
    const svg = all("svg")[0], stops = all("[tabindex='0']", svg);
    stops[0].focus();
    const seen = [told()];
    for (const key of ["ArrowRight", "End", "Home", "Escape"]) {
      page.activeElement.dispatchEvent(
        new frame.contentWindow.KeyboardEvent("keydown", {key, bubbles: true}));
      seen.push(told());
    }
    return {stops: stops.length, texts: seen.map(each => each && each.text.split("\\n")[0])};
  }
  const inside = (e, outer) => box(e).left >= outer.left - 1 && box(e).right <= outer.right + 1
    && box(e).top >= outer.top - 1 && box(e).bottom <= outer.bottom + 1;
  document.getElementById("measured").textContent = JSON.stringify({
    dark: frame.contentWindow.matchMedia("(prefers-color-scheme: dark)").matches,
    width: page.documentElement.clientWidth,
    content_width: page.documentElement.scrollWidth,
    outside: all("body *").filter(e => !e.closest("table")
      && (box(e).left < 0 || box(e).right > page.documentElement.clientWidth))
      .map(e => e.tagName),
    scrolling: all("table").filter(e => box(e).width > box(e.parentElement).width).length,
    cut_off: all("table").filter(e => box(e).right > box(e.parentElement).right
      && style(e.parentElement).overflowX !== "auto").length,
    headings: all("h1, h2, h3, h4").map(e => e.innerText),
    outlines: all(".card:has(h3):has(h4)").map(e =>
      all("h3, h4", e).map(h => h.tagName)),
    rows: all("tr").map(row => [...row.cells].map(cell => cell.innerText)),
    captions: all("figcaption").map(e => e.innerText),
    images: all("img").map(e => e.complete && e.naturalWidth * box(e).width),
    charts: all("svg").map(svg => ({
      title: svg.getAttribute("aria-label"), width: box(svg).width, height: box(svg).height,
      letters: Math.min(...all("text", svg).map(e =>
        parseFloat(style(e).fontSize) * box(svg).width / svg.viewBox.baseVal.width)),
      within: all("text, polyline, polygon, circle", svg).every(e => inside(e, box(svg))),
      marks: all("circle:not(.unseen)", svg).map(e =>
        [e.textContent, box(e).left + box(e).width / 2, box(e).top + box(e).height / 2]),
    })),
    columns: new Set(all("section:nth-of-type(4) .card").map(e => box(e).left)).size,
    faint_texts: texts.map(e => [contrast(e, e.tagName === "text" ? "fill" : "color"), e])
      .filter(([ratio]) => ratio < LEAST_TEXT).map(([ratio, e]) => [ratio, e.outerHTML]),
    faint_lines: all("svg .line").filter(e => contrast(e, "stroke") < LEAST_LINE)
      .map(e => e.getAttribute("class")),
    swatches: all(".legend i.band").map(e => ({
      contrast: contrast(e, "borderTopColor", e.parentElement),
      printed: style(e).printColorAdjust})),
    breaks: all("h2, h3, h4").map(e => style(e).breakAfter),
    num_texts: texts.length,
    pointed: at(0, "pointermove", 3), tapped: at(1, "pointerdown", 20),
    beside: at(0, "pointermove", 90),
    focused: focused(),
  });
};
</script></body></html>
"""


@pytest.fixture(scope="module")
def chromium():
    """The browser; only a machine without one skips what is seen in it."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    return pytest.skip("needs Chromium on PATH (Debian's package chromium)")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report on two runs, one of them with measured latency."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        write_run(folder / "a_run_with_a_long_name_for_a_phone"),
        write_run(folder / "plain", 1, kind="none"),
    ]
    long_names = dataclasses.replace(Evaluation.load(runs[1]), class_names=["a_class" * 30, "dog"])
    long_names.save(runs[1])
    rows = [{"exit": k, "ms": 0.5 * k, "top1": 70.0 + k} for k in (1, 2, 3)]
    entry = {"batch_size": 32, "full_ms": 1.25, "exits": rows, "budgeted": rows}
    write_json(runs[0] / "latency.json", {"device": "some cpu", "step": 40, "batch_sizes": [entry]})
    return write_report(runs).read_text()


@pytest.fixture(scope="module", params=[(PHONE, "light"), (PHONE, "dark"), (DESKTOP, "light")])
def shown(request, chromium, page, tmp_path_factory):
    """The width and colours asked for, and what the browser measured."""
    width, colours = request.param
    folder = tmp_path_factory.mktemp("browser")
    wrapper = (
        WRAPPER.replace("LEAST_TEXT", str(LEAST_TEXT_CONTRAST))
        .replace("LEAST_LINE", str(LEAST_LINE_CONTRAST))
        .replace("WIDTH", str(width))
        .replace("PAGE", html.escape(page))
    )
    (folder / "wrapper.html").write_text(wrapper)
    command = [
        chromium,
        *["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
        *["--disable-background-networking", "--disable-component-update", "--disable-sync"],
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={DESKTOP + 100},900",
        f"--blink-settings=preferredColorScheme={0 if colours == 'dark' else 1}",
        "--dump-dom",
        (folder / "wrapper.html").as_uri(),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    measured = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL).group(1)
    return width, colours, json.loads(html.unescape(measured))


def test_the_page_is_as_wide_as_the_window(shown):
    width, colours, seen = shown
    assert (seen["width"], seen["dark"]) == (width, colours == "dark")
    assert seen["content_width"] == width
    assert seen["outside"] == []
    assert seen["cut_off"] == 0
    # On a phone wide tables scroll by themselves.
    assert width == PHONE or seen["scrolling"] == 0


def test_runs_stand_side_by_side_where_there_is_room(shown):
    width, _, seen = shown
    assert seen["columns"] == (1 if width == PHONE else 2)


def test_every_figure_is_seen(shown):
    _, _, seen = shown
    for seed in (0, 1):
        for k in (1, 2, 3):
            cells = [str(k), f"{1.5 * k:.2f}", f"{70.25 + seed + k:.2f}", "90.50", f"{0.5 / k:.4f}"]
            assert cells in seen["rows"]
    assert ["weighting.kind", "'meta'", "'none'"] in seen["rows"]
    assert ["exit 3", "1.500"] in seen["rows"]
    assert ["full network", "1.250"] in seen["rows"]
    assert seen["captions"][:4] == ["cat 90%", "<dog> 80%", "<dog> 70% (cat)", "<dog> 60%"]
    assert len(seen["images"]) == 8 and all(seen["images"])
    for section in ("Where images leave", "Measured latency", "Batch of 32", "Training"):
        assert section in seen["headings"]


def test_what_belongs_to_a_run_is_below_its_name_in_the_outline_of_the_page(shown):
    _, _, seen = shown
    assert len(seen["outlines"]) == 3
    for run, *parts in seen["outlines"]:
        assert run == "H3"
        assert set(parts) == {"H4"}


def test_charts_place_what_they_say_within_them(shown):
    width, _, seen = shown
    titles = [chart["title"] for chart in seen["charts"]]
    assert len(titles) == 10
    for chart in seen["charts"]:
        assert chart["within"], chart["title"]
        assert 0.7 * min(width, 400) < chart["width"] <= width
        assert chart["height"] > 0.5 * chart["width"]
        assert chart["letters"] >= SMALLEST_LETTERS
    marks = seen["charts"][titles.index("Accuracy over compute")]["marks"]
    values = [
        tuple(float(re.search(r": ([\d.]+)", line)[1]) for line in text.splitlines()[1:])
        for text, _, _ in marks
    ]
    assert values == [
        (1.5 * k, pytest.approx(70.25 + seed + k, abs=0.01)) for seed in (0, 1) for k in (1, 2, 3)
    ]
    for value, place in ((0, 1), (1, 2)):
        numbers, pixels = [v[value] for v in values], [mark[place] for mark in marks]
        scale = (pixels[2] - pixels[0]) / (numbers[2] - numbers[0])
        assert scale > 0 if value == 0 else scale < 0
        for number, pixel in zip(numbers, pixels, strict=True):
            assert pixel == pytest.approx(pixels[0] + scale * (number - numbers[0]), abs=0.5)


def test_texts_and_lines_stand_out_from_what_is_behind_them(shown):
    _, _, seen = shown
    assert seen["num_texts"] > 100
    assert seen["faint_texts"] == []
    assert seen["faint_lines"] == []


def test_swatches_of_bands_stand_out_whatever_their_colour_and_are_printed(shown):
    _, _, seen = shown
    assert len(seen["swatches"]) == 6
    for swatch in seen["swatches"]:
        assert swatch["contrast"] >= LEAST_LINE_CONTRAST
        assert swatch["printed"] == "exact"


def test_no_heading_is_the_last_of_a_printed_page(shown):
    _, _, seen = shown
    assert set(seen["breaks"]) == {"avoid"}


def test_the_mark_that_is_pointed_at_or_tapped_says_its_values(shown):
    _, _, seen = shown
    run = "a_run_with_a_long_name_for_a_phone"
    expected = f"{run}, one exit, exit 1\nmean mul-adds per image: 1.5 M\n"
    assert seen["pointed"]["text"] == expected + "top-1 on test images: 71.25%"
    shares = "exit 3: 0.0%\nexit 2: 0.0%\nexit 1: 100.0%"
    assert seen["tapped"]["text"] == "mean mul-adds per image: 1.5 M\n" + shares
    assert seen["pointed"]["inside"] and seen["tapped"]["inside"]
    assert seen["beside"] is None


def test_a_chart_is_one_stop_of_the_keyboard_and_its_marks_are_reached_by_arrows(shown):
    _, _, seen = shown
    first = "a_run_with_a_long_name_for_a_phone, one exit, exit 1"
    assert seen["focused"] == {
        "stops": 1,
        "texts": [first, first[:-1] + "2", "plain, early exit", first, None],
    }
