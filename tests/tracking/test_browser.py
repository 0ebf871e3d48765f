"""The tabs of TensorBoard in a real browser, for the runs of a sweep and for replicas.

The tests need Chromium and its driver (Debian: chromium, chromium-driver), and are skipped if they
are missing. Screenshots of every tab are left in pytest's temporary folder.
"""

import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

from tests.helpers import TINY, subfolders, train_in, wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium with its chromedriver"),
]

# Scripts that walk through the page, including shadow roots. The first one returns its text.
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
COUNT = """
let count = 0;
const walk = node => {
  if (CONDITION) count++;
  if (node.shadowRoot) walk(node.shadowRoot);
  node.childNodes.forEach(walk);
};
walk(document.body);
return count;
"""
LARGE_PICTURES = "node.nodeName === 'IMG' && node.naturalWidth > 50"
FILLED_AREAS = "node.classList && node.classList.contains('area')"
CURVES = "node.nodeName === 'path' && (node.getAttribute('d') || '').length > 5"


@pytest.fixture(scope="module")
def sweep_address(trained: Path) -> Iterator[str]:
    """Return the address of a TensorBoard server for a sweep and the means over its seeds."""
    with tensorboard_server(trained, b"means/straight_through") as address:
        yield address


@pytest.fixture(scope="module")
def replicas_address(tmp_path_factory) -> Iterator[str]:
    """Return the address of a TensorBoard server for three replicas of three epochs."""
    cwd = tmp_path_factory.mktemp("replicas")
    length = ["training.epochs=3", "training.steps=null"]
    train_in(cwd, *TINY, *length, "seeds=3", "hydra.run.dir=runs/parent")
    with tensorboard_server(cwd / "runs", b"seed_2") as address:
        yield address


@contextmanager
def tensorboard_server(folder: Path, run: bytes) -> Iterator[str]:
    """Start a server, and wait until it has read a run whose name contains `run`."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--load_fast", "false"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}/"
        wait_until(lambda: run in answer(f"{address}data/runs"), seconds=60, interval=0.25)
        yield address
    finally:
        process.terminate()
        process.wait(10)


def answer(address: str) -> bytes:
    """Return what a server answers, or nothing if it cannot be reached."""
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return reply.read()
    except OSError:
        return b""


class Page:
    """A page in a browser without a window."""

    def __init__(self, driver: WebDriver, screenshots: Path) -> None:
        self.driver, self._screenshots = driver, screenshots

    def open_tab(self, address: str, tab: str, *words: str, screenshot: str | None = None) -> str:
        """Open a tab, wait until it shows some words, and return its text."""
        self.driver.get("about:blank")
        self.driver.get(f"{address}#{tab}")
        try:
            self.wait_until(lambda: all(word in self.text() for word in words))
        finally:
            self.save_screenshot(screenshot or tab)
        return self.text()

    def text(self) -> str:
        """Return the text of the page."""
        return self.driver.execute_script(TEXT)

    def count(self, condition: str) -> int:
        """Return the number of elements for which a condition in JavaScript is true."""
        return self.driver.execute_script(COUNT.replace("CONDITION", condition))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition is true, for a minute at most."""
        wait_until(condition, seconds=60, interval=0.25)

    def save_screenshot(self, name: str) -> None:
        """Save a picture of the page."""
        self.driver.save_screenshot(str(self._screenshots / f"{name}.png"))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[Page]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1500,1100"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield Page(driver, tmp_path_factory.mktemp("screenshots", numbered=False))
    driver.quit()


@pytest.fixture(scope="module")
def run_names(trained: Path) -> list[str]:
    return [name for name in subfolders(trained) if name != "means"]


def test_time_series_begins_with_the_elbo_of_every_run(page, sweep_address, run_names):
    text = page.open_tab(sweep_address, "timeseries", "elbo", "objective", *run_names)
    groups = re.findall(r"(\S+)\s+\d+ cards", text)
    assert groups[:3] == ["elbo", "elbo-test", "evaluation"]
    assert re.search(r"(\S+)\s*(/\S+)\s+Alt \+ Scroll", text).groups() == ("elbo", "/train")


def test_scalars_begins_with_the_elbo(page, sweep_address):
    text = page.open_tab(sweep_address, "scalars", "elbo/valid", "elbo-test/last")
    tags = re.findall(r"tag:\s+(\S+)", text)
    assert tags == ["elbo/train", "elbo/valid", "elbo-test/best", "elbo-test/last"]


def test_images_begins_with_reconstructions_and_samples(page, sweep_address, run_names):
    text = page.open_tab(sweep_address, "images", "pictures/reconstructions", *run_names)
    page.wait_until(lambda: page.count(LARGE_PICTURES) > 0)
    page.save_screenshot("images")
    tags = re.findall(r"pictures/\w+", text)
    assert list(dict.fromkeys(tags))[:2] == ["pictures/reconstructions", "pictures/samples"]
    assert tags[:6] == ["pictures/reconstructions"] * 6
    assert re.search(r"step\s+\d+", text)


def test_hparams_shows_the_main_settings_and_the_test_elbo(page, sweep_address, run_names):
    """The estimator and the seed differ between the runs, and therefore come first."""
    main = ["estimator", "seed", "categories", "estimator.temperature", "latents"]
    bounds = ["elbo-test/best", "elbo-test/last", "elbo/train", "elbo/valid"]
    text = page.open_tab(sweep_address, "hparams", "Show Metrics", *main, *bounds, *run_names)
    header = text.partition("Show Metrics")[2].split()
    assert header[:9] == main + bounds


def test_custom_scalars_shows_bounds_and_schedules(page, sweep_address):
    titles = ("bounds", "ELBO", "rate and distortion", "temperature", "over seeds")
    page.open_tab(sweep_address, "custom_scalars", *titles)
    page.wait_until(lambda: page.count(CURVES) > 100)  # curves are drawn after their frames
    page.save_screenshot("custom_scalars")


def test_histograms_shows_the_code_usage(page, sweep_address, run_names):
    page.open_tab(sweep_address, "histograms", "code_usage", run_names[0])


def test_projector_shows_the_test_codes(page, sweep_address):
    page.open_tab(sweep_address, "projector")
    driver = page.driver
    for _ in range(2):  # the plugin is a frame inside a frame
        page.wait_until(lambda: bool(driver.find_elements(By.CSS_SELECTOR, "iframe")))
        driver.switch_to.frame(driver.find_element(By.CSS_SELECTOR, "iframe"))
    page.wait_until(lambda: bool(re.search(r"Points:\s*20\b", page.text())))
    driver.switch_to.default_content()
    page.save_screenshot("projector")


def test_the_means_of_a_sweep_are_runs_with_a_band(page, sweep_address, run_names):
    address = f"{sweep_address}?tagFilter=elbo%2Fvalid%24&runFilter=means"
    names = ["means/reinforce_moving_average", "means/straight_through"]
    page.open_tab(address, "timeseries", "elbo", "Smoothed", *names, screenshot="means")
    rows = r"(\S+_\S+)\s+-[\d.]+\s+-[\d.]+\s+41\b"
    page.wait_until(lambda: set(names) <= set(re.findall(rows, page.text())))
    page.save_screenshot("means")
    title = "mean and standard deviation over seeds"
    page.open_tab(sweep_address, "custom_scalars", title, screenshot="means_band")
    page.wait_until(lambda: page.count(FILLED_AREAS) > 0)
    page.save_screenshot("means_band")


def test_the_mean_of_replicas_is_a_run_beside_them(page, replicas_address):
    """The table below the chart has the columns name, smoothed value, value and step."""
    row = r"(parent\S*)\s+-[\d.]+\s+(-[\d.]+)\s+120\b"
    address = f"{replicas_address}?tagFilter=elbo%2Fvalid%24"
    page.open_tab(address, "timeseries", "elbo", "Smoothed", screenshot="replicas")
    page.wait_until(lambda: len(re.findall(row, page.text())) == 4)
    page.save_screenshot("replicas")
    (parent, mean), *replicas = re.findall(row, page.text())
    assert [name for name, _ in replicas] == [f"parent/seed_{seed}" for seed in range(3)]
    assert parent == "parent"
    assert float(mean) == pytest.approx(fmean(float(value) for _, value in replicas), abs=1e-3)


def test_the_mean_of_replicas_has_a_band(page, replicas_address):
    title = "mean and standard deviation over seeds"
    page.open_tab(replicas_address, "custom_scalars", title, "elbo/valid", screenshot="band")
    page.wait_until(lambda: page.count(FILLED_AREAS) > 0)
    page.save_screenshot("band")
