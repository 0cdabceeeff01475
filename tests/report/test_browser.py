"""The page in a real browser: no console errors, the table sorts, a drawer draws, axe finds nothing serious.

Skipped, with the reason, where no Chromium with its driver is installed; .ci/run installs one.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_html import made_of, pictured
from test_terminal import FUSED, KEPT, REPORT

pytestmark = pytest.mark.browser

NAMES = ("b/attn", "a/attn", "c/attn")
ROWS = (
    *(replace(FUSED, name=name, mask=mask) for name, mask in zip(NAMES, ("bool", "none", "causal"), strict=True)),
    KEPT,
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if found is None or driver is None:
        pytest.skip("NOT RUN: no Chromium with chromedriver is installed (Debian: apt-get install chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = found
    profile = tmp_path_factory.mktemp("profile")
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(word)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    session.set_script_timeout(60)
    yield session
    session.quit()


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    report = replace(REPORT, attentions=ROWS, failures=REPORT.failures)
    path = tmp_path / "report.html"
    path.write_text(made_of(report.as_json(), pictures=pictured(list(NAMES), 2)), encoding="utf-8")
    browser.get(path.as_uri())
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def column(page: Any, at: int) -> list[str]:
    rows = page.find_elements("css selector", "#blocks tbody tr")
    return [row.find_elements("css selector", "th, td")[at].text for row in rows]


def test_the_table_sorts_up_and_down(page: Any) -> None:
    header = page.find_elements("css selector", "#blocks thead th")[0]
    header.find_element("tag name", "button").click()
    assert column(page, 0) == ["a/attn", "b/attn", "c/attn", "softmax_1"]
    assert header.get_attribute("aria-sort") == "ascending"
    header.find_element("tag name", "button").click()
    assert column(page, 0) == ["softmax_1", "c/attn", "b/attn", "a/attn"]
    mask = page.find_elements("css selector", "#blocks thead th")[2]
    mask.find_element("tag name", "button").click()
    assert column(page, 2) == ["?", "bool", "causal", "none"]
    assert header.get_attribute("aria-sort") is None


def test_a_drawer_opens_by_key_and_draws(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    opener = page.find_element("css selector", ".open")
    opener.send_keys(Keys.ENTER)
    drawer = page.find_element("id", "drawer")
    assert drawer.get_attribute("open") is not None
    assert page.find_element("id", "drawer-title").text == "b/attn"
    before, after = page.find_elements("css selector", "#drawer .graph svg")
    assert len(before.find_elements("css selector", "g")) == 40
    assert len(after.find_elements("css selector", "g")) == 12
    canvases = page.find_elements("css selector", ".heads canvas")
    assert len(canvases) == 2 * 3
    colours = page.execute_script(
        "const c = arguments[0]; const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "const seen = new Set(); for (let i = 0; i < d.length; i += 4) seen.add(d.slice(i, i + 3).join());"
        "return [seen.size, c.width, c.getBoundingClientRect().width]",
        canvases[0],
    )
    assert colours[0] > 50 and colours[1] == 64 and colours[2] > 50
    assert (
        "1.00e-7" in page.find_element("id", "drawer-body").text or "e-7" in page.find_element("id", "drawer-body").text
    )
    drawer.send_keys(Keys.ESCAPE)
    assert drawer.get_attribute("open") is None
    assert page.switch_to.active_element == opener, "the focus is back where it was"


def test_one_that_stayed_has_a_drawer_with_the_reason(page: Any) -> None:
    page.find_elements("css selector", ".open")[3].click()
    assert "K203: Not over the keys." in page.find_element("id", "drawer-body").text
    assert "net.py:12" in page.find_element("id", "drawer-body").text


def test_the_theme_follows_the_system_and_the_button(page: Any) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    for wanted in ("dark", "light"):
        page.execute_script("localStorage.clear()")
        page.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": wanted}]}
        )
        page.refresh()
        first = page.execute_script(ground)
        page.find_element("id", "theme").click()
        assert page.execute_script(ground) != first
        assert (page.execute_script("return document.documentElement.dataset.theme") == "dark") == (wanted == "light")
    page.execute_script("localStorage.clear()")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("opened", [False, True])
def test_axe_finds_nothing_serious(page: Any, theme: str, opened: bool) -> None:
    axe = pytest.importorskip("axe_core_python", reason="NOT RUN: axe-core-python is not installed")
    page.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
    if opened:
        page.find_element("css selector", ".open").click()
    page.execute_script((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    assert serious(page) == []
    where = "drawer-body" if opened else "attentions"
    page.execute_script(
        f"document.getElementById('{where}').innerHTML += '<p style=color:#888;background:#999>hardly readable</p>'"
    )
    assert [name for name, _ in serious(page)] == ["color-contrast"], "axe sees what is wrong"


def serious(page: Any) -> list[tuple[str, list[str]]]:
    found = page.execute_async_script("axe.run(document).then(r => arguments[0](r.violations));")
    return [
        (each["id"], [node["html"] for node in each["nodes"]])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
