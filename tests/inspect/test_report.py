"""The report: complete, self-contained, escaped; and a real browser renders it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import pytest

from convgen import zoo
from convgen.errors import DataError
from convgen.inspect.report import report_html, write_report
from convgen.layers.activation import Dropout
from convgen.layers.convolution import Conv2d
from convgen.layers.normalization import BatchNorm2d
from convgen.symbolic.derive import custom_gradient
from convgen.symbolic.parse import parse

pytest.importorskip("jinja2")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = os.environ.get("CONVGEN_TEST_CHROMIUM") or next(
    filter(None, map(shutil.which, BROWSERS)), None
)
VOID = {"meta", "link", "br", "img", "input", "hr"}
EVIL = "<script>alert('x')</script>&\"name\""


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.wrong = [], []
        self.ids, self.targets, self.loads, self.text = set(), [], [], []
        self.counts: dict[str, int] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if "id" in found:
            assert found["id"] not in self.ids, f"id {found['id']} twice"
            self.ids.add(found["id"])
        if tag == "a":
            self.targets.append(found["href"])
        self.loads += [found[k] for k in ("src", "srcset", "data") if k in found]
        self.loads += [found["href"]] if tag == "link" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def strided():
    start = time.process_time()
    layer = Conv2d(4, 8, 3, stride=2, padding=2, dilation=2, groups=2)
    page = report_html(layer, shape=(2, 4, 16, 16))
    return page, time.process_time() - start


@pytest.fixture(scope="module")
def network():
    start = time.process_time()
    page = report_html(zoo.lenet5(), name="zoo:lenet5", shape=(1, 1, 28, 28))
    return page, time.process_time() - start


@pytest.mark.parametrize("which", ["strided", "network"])
def test_small_and_quick(which, request):
    page, seconds = request.getfixturevalue(which)
    assert len(page.encode()) < 3_000_000
    assert seconds < 10  # of this process: a busy machine does not matter


@pytest.mark.parametrize("which", ["strided", "network"])
def test_well_formed_and_self_contained(which, request):
    text, _ = request.getfixturevalue(which)
    page = Page(text)
    assert not page.open and not page.wrong
    assert page.loads == ["data:,"]
    assert "@import" not in text and not re.search(r"url\((?!data:)", text)
    assert "script" not in page.counts
    assert page.targets and all(t[0] == "#" and t[1:] in page.ids for t in page.targets)


def test_every_part_is_there(strided):
    page = Page(strided[0])
    wanted = "formula gradient derivation operator pictures schedule code costs"
    assert set(wanted.split()) <= page.ids
    assert page.counts["math"] > 12 and page.counts["svg"] >= 4 and page.counts["mark"] >= 1
    text = "".join(page.text)
    for said in ("chain rule", "index equation", "solution", "domain", "simplification"):
        assert said in text
    assert text.count("agree in all") == 2 and "disagree" not in text
    assert "define " in text and "vfmadd" in text or "fmla" in text


def test_names_are_escaped(tmp_path):
    layer = parse("Y[i] = sum(j: A[i, j] * x[j])", A=(2, 3), x=3)
    page = write_report(layer, tmp_path / "r.html", name=EVIL).read_text()
    parsed = Page(page)
    assert "script" not in parsed.counts
    assert EVIL in "".join(parsed.text)


def test_closed_form_of_batch_norm_is_shown():
    page = report_html(BatchNorm2d(3, track_running_stats=False), shape=(4, 3, 4, 4))
    assert "\N{GREEK SMALL LETTER GAMMA}" in page
    assert "drop_deviations" in page and "gather_factors" in page


def test_roofline_from_the_measured_peak():
    layer = parse("Y[i] = sum(j: A[i, j] * x[j])", A=(2, 3), x=3)
    page = report_html(layer, peak={"gflops": 100.0, "gigabytes_per_second": 10.0})
    assert "peak 100" in page and "10 GB/s" in page


@pytest.mark.parametrize(
    "program",
    [
        parse("Y[i] = X[i]", X=0),
        parse("Y[n, k] = sum(c: X[n, c] * W[k, c])", X=(0, 3), W=(4, 3)),
        parse("Y[n, k] = sum(c: X[n, c] * W[k, c])", X=("N", 3), W=(4, 3)),
        parse("Y[] = sum(i: X[i] ** 2)", X=4),
        parse("Y[i] = i for i < 4"),
        parse("tensor X: i32[4]\nY[i] = 2 * X[i]"),
        Dropout(0.5).program((4, 5), training=True),
        Conv2d(1, 1, 9, padding=4).program((1, 1, 3, 3)),
        Conv2d(1, 1, 2, stride=5).program((1, 1, 12, 12)),
        custom_gradient(parse("Y[i] = X[i]", X=4), parse("dX[i] = 2 * dY[i]", dY=4)),
    ],
    ids=["empty", "no rows", "size", "scalar", "no inputs", "integers", "dropout", "large kernel",
         "large stride", "custom"],
)  # fmt: skip
def test_odd_programs_have_a_report(program):
    page = Page(report_html(program))
    assert not page.open and not page.wrong and page.counts["math"] >= 1
    assert "disagree" not in "".join(page.text)


def test_a_layer_needs_a_shape():
    with pytest.raises(DataError, match="shape"):
        report_html(Conv2d(1, 1, 3))


# ---------------------------------------------------------------------------------------------
# In a browser

PROBE = """<script>
window.addEventListener('load', () => {
  const size = e => { const b = e.getBoundingClientRect(); return [b.width, b.height]; };
  const seen = [...document.querySelectorAll('math')].filter(e => !e.closest('details:not([open])'));
  const found = {
    math: seen.length, flat: seen.filter(e => size(e)[0] < 8 || size(e)[1] < 8).length,
    svg: [...document.querySelectorAll('svg')].filter(e => size(e)[0] < 50).length,
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    links: 0, background: getComputedStyle(document.body).backgroundColor,
  };
  for (const a of document.querySelectorAll('a[href^="#"]')) {
    a.click();
    if (location.hash === a.getAttribute('href') && document.querySelector(':target')) found.links++;
  }
  found.all = document.querySelectorAll('a').length;
  document.title = 'FOUND' + JSON.stringify(found) + 'END';
});
</script>"""


def browse(page, folder, width=1200, dark=False):
    """(what the probe found, console messages) in a real browser."""
    path = folder / "page.html"
    path.write_text(page.replace("</head>", PROBE + "</head>"), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
    flags += " --disable-background-networking --disable-component-update --disable-sync"
    flags += " --enable-logging=stderr --virtual-time-budget=4000 --dump-dom"
    if dark:
        flags += " --blink-settings=preferredColorScheme=0"
    done = subprocess.run(
        [BROWSER, *flags.split(), f"--user-data-dir={folder / 'user'}", f"--window-size={width},900",
         path.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r"FOUND(\{.*?\})END", done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(found.group(1)), [x for x in done.stderr.splitlines() if "CONSOLE" in x]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here (or CONVGEN_TEST_CHROMIUM=PATH)")
@pytest.mark.parametrize(
    ("which", "width", "dark"), [("strided", 1200, False), ("network", 500, True)]
)
def test_a_browser_renders_it(which, width, dark, request, tmp_path):
    page, _ = request.getfixturevalue(which)
    found, console = browse(page, tmp_path, width, dark)
    assert console == []
    assert found["math"] > 12 and found["flat"] == 0 and found["svg"] == 0
    assert found["links"] == found["all"] > 5
    assert found["wide"] <= 0, "the page itself scrolls sideways"
    assert found["background"] == ("rgb(22, 27, 36)" if dark else "rgb(255, 255, 255)")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here (or CONVGEN_TEST_CHROMIUM=PATH)")
def test_a_browser_notices_mutants(tmp_path):
    page = report_html(parse("Y[i] = X[i]", X=3))
    broken = page.replace("</body>", "<script>missing()</script><a href='#nowhere'>x</a></body>")
    found, console = browse(broken, tmp_path)
    assert console and found["links"] < found["all"]
