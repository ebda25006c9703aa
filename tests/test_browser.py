"""In a real browser: every control of the page shows what the table has, texts stay texts, and nothing is asked for.

Chromium is driven through a pair of pipes, so nothing listens anywhere.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pandas as pd
import pytest

from fedacdp.report import write_page
from fedacdp.results import table
from tests.conftest import experiment
from tests.test_report import CENTRAL, HOSTILE, LOCAL, NONE, ROUNDS, add_grid, add_run, add_study

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium here; `apt-get install chromium`, or your system's package of it, brings it"
)


class Browser:
    """A headless Chromium that finds no host, and what its DevTools protocol answers."""

    def __init__(self, profile: Path) -> None:
        ours, theirs = os.pipe(), os.pipe()  # we write to ours[1], they to theirs[1]
        words = [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--hide-scrollbars",
            "--no-first-run", "--disable-extensions", f"--user-data-dir={profile}", "--disable-dev-shm-usage",
            "--host-resolver-rules=MAP * ~NOTFOUND", "about:blank",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{ours[0]} 4>&{theirs[1]}', "bash", *words],
            pass_fds=(ours[0], theirs[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(ours[0])
        os.close(theirs[1])
        self.write, self.read = os.fdopen(ours[1], "wb"), os.fdopen(theirs[0], "rb")
        self.rest, self.count, self.events = b"", 0, []
        self.session: str | None = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def message(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            piece = os.read(self.read.fileno(), 1 << 16)
            assert piece, "Chromium has gone"
            self.rest += piece
        text, _, self.rest = self.rest.partition(b"\0")
        return json.loads(text)

    def ask(self, method: str, **values: Any) -> dict[str, Any]:
        self.count += 1
        asked = {"id": self.count, "method": method, "params": values}
        self.write.write(json.dumps(asked | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        self.write.flush()
        while (found := self.message()).get("id") != self.count:
            self.events.append(found)
        assert "error" not in found, found
        return found["result"]

    def open(self, path: Path) -> Self:
        self.events.clear()
        self.ask("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.message())
        return self

    def value(self, script: str) -> Any:
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def key(self, name: str) -> None:
        code = {"Tab": 9, "ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "Home": 36, "End": 35}[name]
        for kind in ("rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)

    def choose(self, part: str, value: int, kind: str = "change") -> None:
        self.value(
            f"(() => {{ const e = document.querySelector('[data-part={part}]'); e.value = {value}; "
            f"e.dispatchEvent(new Event('{kind}')) }})()"
        )

    def shoot(self, path: Path, width: int, height: int, media: str = "") -> None:
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        self.ask("Emulation.setEmulatedMedia", media=media)
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(shot))

    def close(self) -> None:
        self.write.close()
        self.process.terminate()
        self.process.wait(30)
        self.read.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


TWICE = CENTRAL | {"noise_multiplier": 3.0}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mechanisms with different sizes, two budgets for one of them, two seeds; the question is hostile."""
    folder = tmp_path_factory.mktemp("results") / "page"
    add_study(folder, HOSTILE, seed=[0, 1])
    add_grid(folder, [NONE, CENTRAL], [0.0, 0.05, 0.1, 0.4], 2)
    add_grid(folder, [TWICE], [0.0, 0.1], 2)
    add_grid(folder, [LOCAL], [0.0, 0.1, 0.2], 2)
    return write_page(folder, folder / "report.html")


def said(browser: Browser) -> str:
    return str(browser.value("document.querySelector('[data-part=says]').textContent")).replace("\u00a0", " ")


def options(browser: Browser, part: str) -> list[str]:
    return browser.value(f"[...document.querySelector('[data-part={part}]').options].map((o) => o.textContent)")


def test_every_choice_of_the_explorer_shows_what_the_table_has(browser: Browser, page: Path) -> None:
    browser.open(page)
    frame = table(page.parent)
    frame = frame[(frame["round"] == ROUNDS) & (frame["group"] == "all")]
    shown = set()
    mechanisms = {"no privacy": "none", "central privacy": "central", "local privacy": "local_update"}
    assert options(browser, "mechanism") == list(mechanisms)
    for place, mechanism in enumerate(mechanisms.values()):
        browser.choose("mechanism", place)
        for budget, text in enumerate(options(browser, "epsilon")):
            browser.choose("epsilon", budget)
            own = frame[frame["mechanism"] == mechanism]
            if mechanism != "none":
                own = own[own["noise_multiplier"] == 2.0]  # a manifest of the tests says so of every run
                own = own[own["setting"].str.endswith(text.partition("multiplier ")[2].rstrip(")"))]
            alphas = sorted(own["alpha"].unique())
            assert browser.value("document.querySelector('[data-part=size]').max") == str(len(alphas) - 1)
            for size, alpha in enumerate(alphas):
                browser.choose("size", size, "input")
                shown.add((mechanism, text, alpha))
                rows = own[own["alpha"] == alpha]
                values = {metric: part["value"].to_numpy() for metric, part in rows.groupby("metric")}
                text_now = said(browser)
                assert f"success is {100 * values['success'].mean():.1f} % (95 % interval" in text_now
                assert "2 seeds)" in text_now
                assert f"accuracy is {100 * values['accuracy'].mean():.1f} %" in text_now
                if alpha:
                    assert f"With {100 * alpha:g} % of the users" in text_now
                    assert f"Without the collective it is {100 * values['success_baseline'].mean():.1f} %" in text_now
                runs = str(browser.value("document.querySelector('[data-part=runs]').textContent"))
                assert {run for run in rows["run_id"] if run in runs} == set(rows["run_id"])
                config = json.loads(browser.value("document.querySelector('[data-part=config]').textContent"))
                assert config["strategy"]["alpha"] == alpha
                assert config["privacy"]["name"] == mechanism
                mean = float(browser.value("document.querySelector('.mean').getAttribute('x1')"))
                assert mean == pytest.approx(6 + 388 * values["success"].mean(), abs=0.01)
    assert len(shown) == 4 + 4 + 2 + 3


def test_a_choice_that_was_not_measured_cannot_be_made(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.choose("size", 3, "input")  # 40 %
    browser.choose("mechanism", 2)  # local privacy was measured to 20 %
    assert "With 20 % of the users" in said(browser)
    browser.choose("mechanism", 1)  # and what was asked for comes back where it was measured
    assert "With 40 % of the users" in said(browser)
    browser.choose("epsilon", 1)
    assert "noise_multiplier=3" in said(browser)
    assert "With 10 % of the users" in said(browser)


def test_the_explorer_works_with_the_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.value("document.querySelector('[data-part=mechanism]').focus()")
    browser.key("ArrowDown")
    assert "central privacy" in said(browser)
    browser.key("Tab")
    assert browser.value("document.activeElement.dataset.part") == "epsilon"
    browser.key("Tab")
    assert browser.value("document.activeElement.dataset.part") == "size"
    browser.key("Home")
    assert "With nobody in the collective" in said(browser)
    browser.key("ArrowRight")
    assert "With 5 % of the users" in said(browser)
    assert "5" in browser.value("document.activeElement.getAttribute('aria-valuetext')")
    assert browser.value("document.querySelector('[data-part=says]').getAttribute('aria-live')") == "polite"
    unnamed = "[...document.querySelectorAll('select, input')].filter((e) => e.labels.length !== 1).length"
    assert browser.value(unnamed) == 0


def test_hostile_texts_stay_texts_in_the_browser(browser: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    group = "</script><img/onerror=alert(1)>\"'=1+1"
    add_study(folder, HOSTILE)
    for members_from in (group, "=1+1"):
        for alpha in (0.0, 0.2):
            add_run(folder, experiment(strategy__alpha=alpha, strategy__members_from=members_from))
    browser.open(write_page(folder, folder / "report.html"))
    assert browser.value("document.querySelector('h1').textContent") == HOSTILE
    assert f"strategy.members_from={group}" in options(browser, "variant")
    browser.choose("variant", options(browser, "variant").index(f"strategy.members_from={group}"))
    assert group in said(browser)
    assert browser.value("document.images.length + document.querySelectorAll('iframe, object').length") == 0
    assert browser.value("document.scripts.length") == 2
    assert not [event for event in browser.events if event.get("method") == "Page.javascriptDialogOpening"]
    assert not [event for event in browser.events if event.get("method") == "Runtime.exceptionThrown"]
    texts = download(browser, "points")
    assert not [cell for row in texts.to_numpy().tolist() for cell in row if str(cell).startswith(("=", "+", "@"))]


def download(browser: Browser, what: str) -> pd.DataFrame:
    link = browser.value(f"document.querySelector('[download$={what}\\\\.csv]').href")
    return pd.read_csv(io.BytesIO(base64.b64decode(link.partition("base64,")[2])))


def test_the_downloads_have_the_numbers_of_the_table(browser: Browser, page: Path) -> None:
    browser.open(page)
    frame = table(page.parent)
    frame = frame[frame["round"] == ROUNDS]
    points = download(browser, "points")
    for row in points.itertuples():
        same = (frame["setting"] == row.setting) & (frame["alpha"] == row.alpha)
        own = frame[same & (frame["metric"] == row.metric) & (frame["group"] == row.group)]
        assert row.mean == pytest.approx(own["value"].mean(), abs=1e-12)
        assert row.seeds == len(own) == 2
        assert set(row.runs.split()) == set(own["run_id"])
    assert set(points["metric"]) >= {"success", "accuracy", "success_baseline"}
    runs = download(browser, "runs")
    assert set(runs["run_id"]) == set(frame["run_id"])
    assert all(json.loads(text)["seed"] == seed for text, seed in zip(runs["config"], runs["seed"], strict=True))


def test_nothing_is_asked_for_and_the_policy_refuses_any_other_script(browser: Browser, page: Path) -> None:
    browser.open(page)
    sent = [event for event in browser.events if event.get("method") == "Network.requestWillBeSent"]
    addresses = {event["params"]["request"]["url"] for event in sent}
    assert addresses - {"data:,"} == {page.as_uri()}
    browser.value(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1'; "
        "document.body.append(s) })()"
    )
    assert browser.value("window.ran") is None
    refused = browser.value(
        "new Promise((done) => { addEventListener('securitypolicyviolation', (e) => done(e.effectiveDirective)); "
        "fetch('http://127.0.0.1:9/').then(() => done('sent'), () => 0) })"
    )
    assert refused == "connect-src"


def test_the_page_of_500_runs_is_small_and_quick(browser: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "large"
    add_study(folder, seed=[0])
    mechanisms = [NONE, *(CENTRAL | {"noise_multiplier": float(n)} for n in range(1, 11)),
                  *(LOCAL | {"noise_multiplier": float(n)} for n in range(1, 10))]  # fmt: skip
    add_grid(folder, mechanisms, [0.0, 0.05, 0.1, 0.2, 0.4], 5)
    path = write_page(folder, folder / "report.html")
    assert path.stat().st_size < 5_000_000
    browser.open(path)
    ready = float(browser.value("document.documentElement.dataset.ready"))
    print(f"{path.stat().st_size:,} bytes, interactive after {ready:.0f} ms")  # noqa: T201
    assert ready < 2000


def test_the_page_fits_a_phone_and_prints(browser: Browser, page: Path, tmp_path: Path) -> None:
    browser.open(page)
    for name, width, media in (("desktop", 1200, ""), ("phone", 390, ""), ("print", 800, "print")):
        browser.shoot(tmp_path / f"{name}.png", width, 900, media)
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        assert browser.value("document.documentElement.scrollWidth") <= width, name
        shown = browser.value("getComputedStyle(document.querySelector('.explorer')).display !== 'none'")
        assert shown == (media != "print")
