"""The page of runs as a person sees it, in a real Chromium."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from developed import GROWN, PRUNED, developed
from recorded import a_result, a_round

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("plotly")

from synaptree.report.page.live import LiveServer  # noqa: E402
from synaptree.report.page.render import page, write_page  # noqa: E402
from synaptree.results import write_progress  # noqa: E402

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
SCREENSHOTS = Path(os.environ.get("CI_OUTPUT", "build")) / "screenshots"


@dataclass
class Tab:
    """A page in the browser, with all it said and all it asked for."""

    seen: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def visible(self, chart: str) -> list[bool | str]:
        """Return which traces of a chart can be seen."""
        return list(self.seen.evaluate(f"{self._figure(chart)}.data.map((trace) => trace.visible ?? true)"))

    def colour(self, chart: str) -> str:
        """Return the colour of a chart's words."""
        return str(self.seen.evaluate(f"{self._figure(chart)}._fullLayout.font.color"))

    def draw_all(self) -> None:
        """Bring every chart into view, as printing does."""
        self.seen.evaluate("dispatchEvent(new Event('beforeprint'))")
        self.seen.wait_for_selector(".plot:not([data-drawn])", state="detached")

    def draw(self, *charts: str) -> None:
        """Bring some charts into view."""
        for chart in charts:
            place = self.seen.locator(f".chart:has(figcaption:text-is('{chart}'))").first
            place.scroll_into_view_if_needed()
            place.locator(".plot[data-drawn]").wait_for()

    def settles(self, ask: Callable[[], Any], wanted: Any) -> bool:
        """Say whether an answer becomes the one that is wanted, within ten seconds."""
        for _ in range(100):
            if ask() == wanted:
                return True
            self.seen.wait_for_timeout(100)
        return False

    def _figure(self, chart: str) -> str:
        named = f"one.querySelector('figcaption').innerText === '{chart}'"
        return f"[...document.querySelectorAll('.chart')].find((one) => {named}).querySelector('.plot')"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    places = [developed(folder, PRUNED), developed(folder, GROWN, "sparse", (0,))]
    write_page(page(places), folder / "report.html")
    return folder / "report.html"


def tab(browser: Any, address: str, width: int = 1280, scheme: str = "light") -> Tab:
    opened = Tab(browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme))
    opened.seen.on("console", lambda message: opened.said.append(message.text))
    opened.seen.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.seen.on("request", lambda request: opened.asked.append(request.url))
    opened.seen.goto(address)
    return opened


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_is_drawn_in_full_and_asks_for_nothing_but_itself(browser, report, width, scheme):
    one = tab(browser, report.as_uri(), width, scheme)
    one.seen.wait_for_selector(".plot[data-drawn]")
    painted = one.seen.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert painted < one.seen.evaluate("performance.getEntriesByName('plotting')[0].startTime")
    assert one.seen.locator(".plot").last.get_attribute("data-drawn") is None  # not in view yet
    one.draw_all()
    assert one.said == []
    assert one.asked == [report.as_uri()]
    charts = one.seen.locator(".plot")
    assert charts.count() >= 12
    for number in range(charts.count()):
        assert charts.nth(number).locator(".cartesianlayer .subplot").count() > 0
    assert one.seen.evaluate("document.documentElement.scrollWidth") == width
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    one.seen.screenshot(path=SCREENSHOTS / f"report-{width}-{scheme}.png", full_page=True)
    one.seen.close()


def test_filters_hide_networks_and_choose_layers_and_rounds(browser, report):
    one = tab(browser, report.as_uri())
    one.draw("Accuracy over density", "What each input keeps", "Degrees of units")
    assert one.visible("Accuracy over density") == [True, True]
    one.seen.locator("input[value=random]").first.uncheck()
    assert one.settles(lambda: one.visible("Accuracy over density"), [True, False])
    assert one.visible("Degrees of units") == [True, True, False, False]
    one.seen.locator("select[data-filter=layer]").first.select_option("fc2")
    one.seen.locator("select[data-filter=round]").first.select_option("0")
    assert one.settles(lambda: one.visible("Degrees of units"), [False, False, True, True])
    assert one.settles(lambda: one.visible("What each input keeps"), [True, False, False])
    assert one.said == []
    one.seen.close()


def test_light_and_dark_follow_the_machine_and_then_the_button(browser, report):
    one = tab(browser, report.as_uri(), scheme="dark")
    one.draw("Accuracy over density")
    back = "getComputedStyle(document.documentElement).backgroundColor"
    dark, words = one.seen.evaluate(back), one.colour("Accuracy over density")
    one.seen.locator("#theme").click()
    assert (dark, one.seen.evaluate(back)) == ("rgb(20, 23, 26)", "rgb(255, 255, 255)")
    assert words == "#e6e8ea"
    assert one.settles(lambda: one.colour("Accuracy over density"), "#1c1f23")
    one.seen.close()


def test_a_live_page_shows_what_is_new_and_keeps_what_was_chosen(browser, tmp_path):
    def sign(rounds: int) -> None:
        told = [a_round(number, validation_accuracy=0.9 - 0.1 * number) for number in range(rounds)]
        write_progress(a_result(status="running", rounds=told), tmp_path)
        write_progress(a_result(control="random", status="running", rounds=told), tmp_path / "control")

    sign(1)
    with LiveServer([tmp_path]) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        one = tab(browser, server.address)
        one.seen.wait_for_selector(".plot[data-drawn]")
        one.seen.locator("input[value=random]").uncheck()
        one.seen.locator("summary").first.click()
        sign(3)
        one.seen.get_by_text("round 2").first.wait_for(timeout=10_000)
        one.draw("Accuracy over density")
        assert not one.seen.locator("input[value=random]").is_checked()
        assert one.visible("Accuracy over density") == [True, False]
        server.shutdown()
        thread.join()
    assert one.said == []
    assert {address.partition("?")[0] for address in one.asked} == {server.address, f"{server.address}state"}
    one.seen.wait_for_selector("body[data-server=gone]")
    one.seen.close()
