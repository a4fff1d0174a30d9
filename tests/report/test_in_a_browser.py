"""The pages in a browser: widths of phones and desks, light and dark, with a keyboard, and while a run goes on."""

import re
import shutil
import threading

import pytest

from poa_hf.figures import charts
from poa_hf.report.compare import write_comparison
from poa_hf.report.live import LivePage, LiveServer
from poa_hf.report.page import write_report
from poa_hf.runs.evaluations import save_evaluations

from ..conftest import tiny_config
from .browser import found_in, needs_chromium, script_for, title_of
from .pages import evaluation

pytestmark = needs_chromium

SIZE_AND_TYPE = """
const small = [];
for (const element of page.querySelectorAll("body *")) {
  const text = [...element.childNodes].filter(node => node.nodeType === 3).map(node => node.data).join("").trim();
  const size = parseFloat(view.getComputedStyle(element).fontSize);
  if (text && size < 12 && !["SCRIPT", "STYLE", "TITLE"].includes(element.tagName)) small.push(text);
}
const rows = [...page.querySelectorAll(".charts")].filter(row => row.offsetParent).map(row => {
  const box = row.getBoundingClientRect(), figures = [...row.children].map(each => each.getBoundingClientRect());
  const ends = (each, other) => other.top === each.top && Math.abs(other.right - box.right) < 1.5;
  return figures.every(each => figures.some(other => ends(each, other)));
});
return {small, filled: rows.length > 0 && rows.every(Boolean), width: view.innerWidth,
  wide: page.documentElement.scrollWidth, hints: [...page.querySelectorAll(".table + .hint")].map(hint => {
    const box = hint.previousElementSibling;
    return [hint.offsetParent !== null, box.scrollWidth > box.clientWidth];
  }),
  loaded: [...page.images].every(image => image.naturalWidth > 0),
  line: view.getComputedStyle(page.querySelector("[data-chart=loss] path[stroke]")).stroke,
  ink: view.getComputedStyle(page.body).color, paper: view.getComputedStyle(page.body).backgroundColor};
"""


def measured(trained, folder, datasets=("textures", "birds")):
    """A copy of the run with evaluations on two datasets."""
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("report"))
    sizes = list(map(str, tiny_config().backbone_config.space))
    for name in datasets:
        records = [evaluation(size, 0.3 + 0.02 * index, dataset=name) for index, size in enumerate(sizes)]
        save_evaluations(folder, records)
    return folder


@pytest.fixture(scope="module")
def pages(trained, tmp_path_factory):
    """The page of a run, and that of two."""
    place = tmp_path_factory.mktemp("pages")
    one, two = (measured(trained, place / name) for name in ("one", "two"))
    return {
        "run": write_report(one, place / "out", num_images=1).as_uri(),
        "runs": write_comparison([one, two], place / "both").as_uri(),
    }


@pytest.mark.parametrize(
    ("kind", "width", "dark"),
    [
        ("run", 390, False),
        pytest.param("run", 1440, True, marks=pytest.mark.slow),
        *[
            pytest.param(kind, width, dark, marks=pytest.mark.slow)
            for kind in ("run", "runs")
            for width in (320, 390, 800, 1440)
            for dark in (False, True)
            if (kind, width, dark) not in (("run", 390, False), ("run", 1440, True))
        ],
    ],
)
def test_type_widths_and_colours(pages, tmp_path, kind, width, dark):
    """No type below 12 pixels, charts that fill their rows, nothing wider than the page, a hint where a table scrolls,
    and the reader's colours."""
    found = found_in(pages[kind], SIZE_AND_TYPE, tmp_path, width, dark)
    assert found["small"] == [] and found["filled"] and found["loaded"]
    assert found["width"] == width and found["wide"] <= width
    assert found["hints"] and all(shown == scrolls for shown, scrolls in found["hints"])
    ink, paper = (sum(map(int, re.findall(r"\d+", found[name])[:3])) / 765 for name in ("ink", "paper"))
    assert (ink > 0.8 and paper < 0.2) if dark else (ink < 0.2 and paper > 0.8)
    theme = charts.DARK if dark else charts.LIGHT
    assert tuple(map(int, re.findall(r"\d+", found["line"]))) == tuple(bytes.fromhex(theme.lines[0][1:]))


USE = """
const rows = () => [...page.querySelectorAll("tbody[id], .table tbody th")].map(row => row.textContent);
const before = rows();
page.querySelectorAll(".table thead button")[2].click();
const sorted = [rows()[0], page.querySelectorAll(".table thead th")[2].getAttribute("aria-sort")];
const select = page.getElementById("choice");
const parts = () => [...page.querySelectorAll("div[data-choice]")].map(part => part.hidden);
const first = parts();
select.value = "1";
select.dispatchEvent(new view.Event("change", {bubbles: true}));
const second = parts();
const area = page.querySelector("[data-chart=loss] .area");
area.focus();
const press = key => area.dispatchEvent(new view.KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
const said = () => [...(area.querySelector(".reading")?.children ?? [])].map(line => line.textContent);
press("Home"); const atHome = said(); press("ArrowRight"); const next = said(); press("End"); const atEnd = said();
press("Escape"); const after = said();
const focusable = [...page.querySelectorAll("a[href], button, select, [tabindex]")].filter(
  each => each.offsetParent || each.matches(".skip"));
const unseen = [];
for (const each of focusable) {
  each.focus({focusVisible: true});
  const style = view.getComputedStyle(each);
  const outlined = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
  if (page.activeElement !== each || !outlined) unseen.push(each.outerHTML.slice(0, 80));
}
const tab = [...page.querySelectorAll("[tabindex]")].every(each => each.tabIndex === 0);
return {before, sorted, first, second, atHome, next, atEnd, after, unseen, tab, count: focusable.length,
  start: focusable[0].textContent, target: page.querySelector(focusable[0].getAttribute("href")).tagName};
"""


def test_use_with_a_keyboard(pages, tmp_path):
    found = found_in(pages["run"], USE, tmp_path)
    sizes = list(map(str, tiny_config().backbone_config.space))
    assert found["before"] == sizes and found["sorted"] == ["32x3", "descending"]
    assert found["first"] == [False, True] * 2 and found["second"] == [True, False] * 2
    assert found["atHome"][0] == "step 1" and found["next"][0] == "step 2" and found["atEnd"][0] == "step 4"
    assert len(found["atEnd"]) == 2 and float(found["atEnd"][1]) > 0 and found["after"] == []
    assert found["unseen"] == [] and found["tab"] and found["count"] > 10
    assert (found["start"], found["target"]) == ("To the content", "MAIN")


LIVE = """
const text = () => page.querySelector("dl").textContent;
const before = text();
view.scrollTo(0, 700);
const select = page.getElementById("choice");
select.value = "1";
select.dispatchEvent(new view.Event("change", {bubbles: true}));
page.querySelectorAll(".table thead button")[2].click();
const area = page.querySelector("[data-chart=loss] .area");
area.focus({preventScroll: true});
const scrolled = view.scrollY;
for (let turn = 0; turn < 60 && text() === before; turn++) await wait(250);
await wait(200);
return {before, after: text(), scrolled, now: view.scrollY, choice: page.getElementById("choice").value,
  shown: [...page.querySelectorAll("div[data-choice]")].map(part => part.hidden),
  sorted: page.querySelectorAll(".table thead th")[2].getAttribute("aria-sort"),
  focus: page.activeElement.closest("[data-chart]")?.dataset.chart, status: page.getElementById("live").textContent};
"""


class Scripted(LivePage):
    """A page that runs a script, of a run that goes on after the browser has asked for news a few times."""

    asked = 0

    def version(self):
        self.asked += 1
        if self.asked == 6:
            with open(f"{[*self.runs.values()][0]}/metrics.jsonl", "a") as file:
                file.write('{"step": 77, "loss": 1.25}\n')
        return super().version()

    def page(self):
        return super().page().replace("</body>", f"<script>(async () => {{ {script_for(LIVE)} }})()</script></body>")


@pytest.mark.slow
def test_a_page_that_is_refreshed_stays_where_it_is(trained, tmp_path):
    with LiveServer(Scripted([measured(trained, tmp_path / "run")], rest=0)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = title_of(f"{server.address}/", tmp_path / "browser", milliseconds=20_000)
        server.shutdown()
    assert "77 of 4" in found["after"] and "1.250" in found["after"] and "77" not in found["before"]
    assert found["scrolled"] == found["now"] > 0 and found["choice"] == "1" and found["shown"] == [True, False] * 2
    assert found["sorted"] == "descending" and found["focus"] == "loss" and found["status"].startswith("Live")
