"""TensorBoard as a dashboard, in a real browser: one root over the runs of a sweep.

Needs Chromium and its driver (Debian: chromium, chromium-driver); skipped where they are missing.
Screenshots of every tab are left in pytest's temporary folder.
"""

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

import pytest
from conftest import TINY, train_in
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium with its chromedriver"),
]

# All that can be read on the page: text inside of shadow roots too, and labels of inputs.
TEXT = """
const words = [];
const walk = node => {
  if (node.nodeType === Node.TEXT_NODE) { words.push(node.textContent); return; }
  if (['STYLE', 'SCRIPT', 'TEMPLATE'].includes(node.nodeName)) return;
  if (node.shadowRoot) walk(node.shadowRoot);
  node.childNodes.forEach(walk);
};
walk(document.body);
return words.join(' ');
"""
IMAGES = """
const found = [];
const walk = node => {
  if (node.nodeName === 'IMG' && node.naturalWidth > 50) found.push(node.naturalWidth);
  if (node.shadowRoot) walk(node.shadowRoot);
  node.childNodes.forEach(walk);
};
walk(document.body);
return found.length;
"""
BANDS = """
let found = 0;
const walk = node => {
  if (node.classList && node.classList.contains('area')) found++;
  if (node.shadowRoot) walk(node.shadowRoot);
  node.childNodes.forEach(walk);
};
walk(document.body);
return found;
"""
CURVES = """
let found = 0;
const walk = node => {
  if (node.nodeName === 'path' && (node.getAttribute('d') || '').length > 5) found++;
  if (node.shadowRoot) walk(node.shadowRoot);
  node.childNodes.forEach(walk);
};
walk(document.body);
return found;
"""


@pytest.fixture(scope="module")
def address(trained: Path) -> Iterator[str]:
    """A TensorBoard server over the sweep."""
    with server(trained, b"seed0") as address:
        yield address


@pytest.fixture(scope="module")
def replicas_address(tmp_path_factory) -> Iterator[str]:
    """One over three replicas, three epochs each, with what they have in common."""
    cwd = tmp_path_factory.mktemp("replicas")
    longer = ["training.epochs=3", "training.steps=null"]
    train_in(cwd, *TINY, *longer, "seeds=3", "hydra.run.dir=runs/parent")
    with server(cwd / "runs", b"seed_2") as address:
        yield address


@contextmanager
def server(folder: Path, word: bytes) -> Iterator[str]:
    """Waits until a run of that name has been read."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--load_fast", "false"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}/"
        until(lambda: answers(f"{address}data/runs", word))
        yield address
    finally:
        process.terminate()
        process.wait(10)


def answers(address: str, word: bytes) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return word in reply.read()
    except OSError:
        return False


def until(there: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it did not appear in time"
        time.sleep(0.25)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[WebDriver]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1500,1100"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.screenshots = tmp_path_factory.mktemp("screenshots", numbered=False)
    yield driver
    driver.quit()


def screenshot(browser: WebDriver, name: str) -> None:
    browser.save_screenshot(str(browser.screenshots / f"{name}.png"))


@pytest.fixture
def show(address, browser):
    """Opens a tab, waits for words to appear in it, leaves a screenshot and gives all words."""

    def call(tab: str, *words: str, at: str = address, name: str | None = None) -> str:
        browser.get("about:blank")
        browser.get(f"{at}#{tab}")

        def there() -> bool:
            text = browser.execute_script(TEXT)
            return all(word in text for word in words)

        try:
            until(there)
        finally:
            screenshot(browser, name or tab)
        return browser.execute_script(TEXT)

    return call


@pytest.fixture(scope="module")
def names(trained) -> list[str]:
    return sorted(folder.name for folder in trained.iterdir() if folder.is_dir())


def test_scalars(show, names):
    text = show("timeseries", "elbo", *names)
    for tag in ("objective", "rate", "schedule"):
        assert tag in text


def test_images(show, browser, names):
    text = show("images", "reconstructions", "samples", "code_usage", *names)
    until(lambda: browser.execute_script(IMAGES) > 0)
    screenshot(browser, "images")
    assert re.search(r"step\s+\d+", text)


def test_hparams_has_a_row_a_run_with_its_bounds(show, names):
    show("hparams", "elbo/test", "importance_weighted/test", "estimator", *names)


def test_custom_scalars(show, browser):
    show("custom_scalars", "bounds", "ELBO", "rate and distortion", "temperature")
    until(lambda: browser.execute_script(CURVES) > 100)  # the charts are drawn after their frames
    screenshot(browser, "custom_scalars")


def test_histograms(show, names):
    show("histograms", "code_usage", names[0])


def test_projector(show, browser):
    show("projector")
    for _ in range(2):  # the plugin is a frame inside of a frame
        until(lambda: browser.find_elements(By.CSS_SELECTOR, "iframe"))
        browser.switch_to.frame(browser.find_element(By.CSS_SELECTOR, "iframe"))
    until(lambda: re.search(r"Points:\s*20\b", browser.execute_script(TEXT)))
    browser.switch_to.default_content()
    screenshot(browser, "projector")


def test_the_mean_of_replicas_is_a_run_beside_them(show, browser, replicas_address):
    """By the table below the chart: name, smoothed, value, step."""
    row = r"(parent\S*)\s+-[\d.]+\s+(-[\d.]+)\s+120\b"
    at = f"{replicas_address}?tagFilter=elbo%2Fvalid%24"
    show("timeseries", "elbo", "Smoothed", at=at, name="replicas")
    until(lambda: len(re.findall(row, browser.execute_script(TEXT))) == 4)
    screenshot(browser, "replicas")
    (parent, mean), *replicas = re.findall(row, browser.execute_script(TEXT))
    assert [name for name, _ in replicas] == [f"parent/seed_{seed}" for seed in range(3)]
    assert parent == "parent"
    assert float(mean) == pytest.approx(fmean(float(value) for _, value in replicas), abs=1e-3)


def test_the_mean_of_replicas_has_a_band(show, browser, replicas_address):
    title = "mean and standard deviation over seeds"
    show("custom_scalars", title, "elbo/valid", at=replicas_address, name="band")
    until(lambda: browser.execute_script(BANDS) > 0)
    screenshot(browser, "band")
