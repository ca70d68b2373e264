"""The report in headless Chromium: drawn without errors, sorted, filtered, in light and dark, on a phone, and fast."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait
from synthetic import CHARTS, HOSTILE, write_run

from server_app.report import write_comparison, write_report

pytestmark = pytest.mark.e2e

FLAGS = (
    *("--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--window-size=1200,900"),
)
SECONDS_TO_OPEN = 3.0
"""Until the page is loaded and answers; its charts follow from the top down."""


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver")
    options = Options()
    options.binary_location = chromium
    for flag in FLAGS + (("--no-sandbox",) if os.geteuid() == 0 else ()):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def show(browser: webdriver.Chrome) -> Callable[..., webdriver.Chrome]:
    """Open a page, wait until its charts are drawn, and see that nothing was complained of."""

    def go(path: Path, width: int = 1200, scheme: str = "light", seconds: float = 60.0) -> webdriver.Chrome:
        wishes = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wishes.items()]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        browser.get(path.absolute().as_uri())
        drawn(browser, seconds)
        assert browser.get_log("browser") == []
        return browser

    return go


def drawn(browser: webdriver.Chrome, seconds: float = 60.0) -> None:
    WebDriverWait(browser, seconds, 0.05).until(
        lambda page: page.execute_script("return document.documentElement.dataset.drawn") == "yes"
    )


def marks_of(chart: WebElement) -> int:
    """Return how many things of a chart are drawn that show data."""
    shapes = (
        ".scatterlayer path, .scatterlayer .point, .barlayer path, .heatmaplayer image, .sankey-link, .boxlayer path"
    )
    return len(chart.find_elements(By.CSS_SELECTOR, shapes))


def cpu_seconds(browser: webdriver.Chrome) -> float:
    """Return what all processes of the browser have computed: on an idle machine it takes no longer than that."""
    driver = psutil.Process(browser.service.process.pid)
    seconds = 0.0
    for process in driver.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            own = process.cpu_times()
            seconds += own.user + own.system
    return seconds


def names_in(page: webdriver.Chrome) -> list[str]:
    return page.execute_script(
        "return Array.from(document.querySelectorAll('table.clients tbody tr')).filter((row) => !row.hidden)"
        ".map((row) => row.cells[0].textContent)"
    )


def test_every_chart_is_drawn_in_light_and_dark(tmp_path: Path, show: Callable[..., webdriver.Chrome]) -> None:
    path = write_report(write_run(tmp_path / "run", clients=24, groups=4))
    backgrounds = []
    for scheme in ("light", "dark"):
        page = show(path, scheme=scheme)
        charts = {chart.get_attribute("id"): chart for chart in page.find_elements(By.CSS_SELECTOR, ".chart")}
        assert charts.keys() == CHARTS
        for chart in charts.values():
            assert marks_of(chart) > 0
        backgrounds.append(page.execute_script("return getComputedStyle(document.body).backgroundColor"))
        text = charts["accuracy"].find_element(By.CSS_SELECTOR, ".xtick text")
        backgrounds.append(text.value_of_css_property("fill"))
    assert len(set(backgrounds)) == 4
    page.find_element(By.CSS_SELECTOR, ".toggle").click()
    drawn(page)
    assert page.execute_script("return getComputedStyle(document.body).backgroundColor") == backgrounds[0]
    text = page.find_element(By.CSS_SELECTOR, "#accuracy .xtick text")
    assert text.value_of_css_property("fill") == backgrounds[1]
    assert page.get_log("browser") == []


def test_the_table_is_sorted_and_filtered(tmp_path: Path, show: Callable[..., webdriver.Chrome]) -> None:
    page = show(write_report(write_run(tmp_path / "run", clients=40, groups=4)))
    assert names_in(page) == [f"client-{i}" for i in range(40)]

    heads = {head.text.strip(): head for head in page.find_elements(By.CSS_SELECTOR, "table.clients th button")}
    heads["own expert"].click()
    column = list(heads).index("own expert")
    script = (
        "return Array.from(document.querySelectorAll('table.clients tbody tr')).map((r) => r.cells[%d].dataset.value)"
    )
    values = [float(value) for value in page.execute_script(script % column)]
    assert values == sorted(values)
    worst = names_in(page)[:4]
    heads["own expert"].click()
    values = [float(value) for value in page.execute_script(script % column)]
    assert values == sorted(values, reverse=True)
    heads["client"].click()
    assert names_in(page) == [f"client-{i}" for i in range(40)]

    page.find_element(By.ID, "worst").click()
    assert set(names_in(page)) == set(worst)
    page.find_element(By.ID, "worst").click()
    page.find_element(By.ID, "find").send_keys("CLIENT-3")
    assert names_in(page) == ["client-3", *(f"client-{i}" for i in range(30, 40))]
    Select(page.find_element(By.CSS_SELECTOR, "select[aria-label=group]")).select_by_value("3")
    assert names_in(page) == ["client-3", "client-31", "client-35", "client-39"]
    assert page.find_element(By.ID, "count").text == "4 of 40 clients"
    assert page.get_log("browser") == []


def test_names_from_outside_run_nothing(tmp_path: Path, show: Callable[..., webdriver.Chrome]) -> None:
    directory = write_run(
        tmp_path / "run", clients=len(HOSTILE), name=HOSTILE.__getitem__, classes=6, class_names=HOSTILE
    )
    page = show(write_report(directory))
    assert set(names_in(page)) == set(HOSTILE)
    assert not page.find_elements(By.CSS_SELECTOR, "img, td b, td a, svg a, td script")
    ticks = [tick.text for tick in page.find_elements(By.CSS_SELECTOR, "#confusion .ytick text")]
    assert set(ticks) == set(HOSTILE)


def test_on_a_phone_nothing_is_wider_than_the_screen(tmp_path: Path, show: Callable[..., webdriver.Chrome]) -> None:
    page = show(write_report(write_run(tmp_path / "run", clients=24, rounds=12)), width=390)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    assert all(marks_of(chart) for chart in page.find_elements(By.CSS_SELECTOR, ".chart"))


def test_a_thousand_clients_open_in_less_than_three_seconds(
    tmp_path: Path, browser: webdriver.Chrome, show: Callable[..., webdriver.Chrome]
) -> None:
    path = write_report(write_run(tmp_path / "large", clients=1000, rounds=100, groups=10))
    seconds = []
    for _ in range(3):  # whatever else the machine does makes some of them slower
        before = cpu_seconds(browser)
        browser.get(path.as_uri())
        seconds.append(cpu_seconds(browser) - before)
        drawn(browser)
    assert min(seconds) < SECONDS_TO_OPEN
    page = show(path)
    assert len(names_in(page)) == 1000
    assert all(marks_of(chart) for chart in page.find_elements(By.CSS_SELECTOR, ".chart"))


def test_a_comparison_is_drawn(tmp_path: Path, show: Callable[..., webdriver.Chrome]) -> None:
    runs = [write_run(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two", "three"))]
    page = show(write_comparison(runs, tmp_path / "comparison.html"))
    charts = page.find_elements(By.CSS_SELECTOR, ".chart")
    assert len(charts) == 3
    assert all(marks_of(chart) for chart in charts)
