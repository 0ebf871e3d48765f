"""The report page in a real browser: the table, the explorer, dark mode and narrow screens.

Screenshots are left in pytest's temporary folder.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.select import Select
from torch import Tensor

from tests.browser import MARKS, start_browser
from vae.comparison.explorer import collect_explorer
from vae.comparison.report import Column, Section, render_page
from vae.model import CategoricalVAE
from vae.networks import MLP, Activation, Conv, Linear, Networks
from vae.tracking.pictures import modes

pytestmark = [*MARKS, pytest.mark.usefixtures("float32")]

LATENTS, CATEGORIES = 3, 5
SHAPE = (8, 12)  # neither a square nor the 28 x 28 of MNIST, so that no size is fixed
CODE = [4, 0, 2]
NETWORKS: dict[str, Networks] = {
    "linear": Linear(),
    **{name: MLP([16], [24, 32], name) for name in get_args(Activation)},
    "conv": Conv(3, 24, "leaky_relu"),
    "data mean": Linear(),
}


def random_model(networks: Networks, output_bias: str = "default") -> CategoricalVAE:
    """Return a model whose decoded pixels have all probabilities, and a sharp learned prior."""
    torch.manual_seed(1)
    model = CategoricalVAE(networks, LATENTS, CATEGORIES, "learned", SHAPE, output_bias).float()
    model.set_data_mean(torch.rand(SHAPE[0] * SHAPE[1]))
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.mul_(5 if weight.dim() == 4 else 2.5)  # convolutions have smaller weights
        model.prior_logits.zero_()
        model.prior_logits[range(LATENTS), CODE] = 50
    return model


def decode(model: CategoricalVAE, code: list[int]) -> Tensor:
    """Return the pixel probabilities (D,) of a code, one category per latent."""
    z = torch.nn.functional.one_hot(torch.tensor(code), CATEGORIES).float()
    return model.decode(z).sigmoid().detach()


@pytest.fixture(scope="module")
def models() -> dict[str, CategoricalVAE]:
    bias = {"data mean": "data_mean"}
    return {
        name: random_model(networks, bias.get(name, "default"))
        for name, networks in NETWORKS.items()
    }


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (10, SHAPE[0] * SHAPE[1]), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[WebDriver]:
    driver = start_browser(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory, models, images) -> Path:
    section = Section(
        title="digits",
        columns=[Column("estimator", False), Column("ELBO", False), Column("rate", True)],
        rows=[["b", "-9.5 ± 1.0", "1.00"], ["a", "-100.2 ± 1.0", "-"], ["c", "-10.1", "20.00"]],
        explorer=collect_explorer(models | {"a long name " * 20: models["linear"]}, images),
        figures={},
        pictures={},
    )
    file = tmp_path_factory.mktemp("report", numbered=False) / "index.html"
    file.write_text(render_page([section]))
    return file


@pytest.fixture
def page(browser, page_file) -> Iterator[WebDriver]:
    """Open the page, and assert after the test that the browser has reported no error."""
    browser.get(page_file.as_uri())
    yield browser
    assert errors_of(browser) == []


def errors_of(page: WebDriver) -> list[str]:
    """Return the errors that the browser has reported since the last call."""
    return [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]


def find(page: WebDriver, selector: str) -> Any:
    """Return the first element of a CSS selector."""
    return page.find_element(By.CSS_SELECTOR, selector)


def category_button(page: WebDriver, latent: int, category: int) -> Any:
    """Return the button that chooses a category."""
    return find(page, f"button[data-latent='{latent}'][data-category='{category}']")


def pixels_of(page: WebDriver, canvas: str) -> Tensor:
    """Return the first colour of each pixel of a canvas, (D,) in [0, 1]."""
    script = """
        const canvas = document.querySelector(`.${arguments[0]}`);
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return [canvas.height, canvas.width, [...data.filter((_, index) => index % 4 === 0)]];
    """
    height, width, values = page.execute_script(script, canvas)
    assert (height, width) == SHAPE
    return torch.tensor(values) / 255


def shown_code(page: WebDriver) -> list[int]:
    """Return the code that the page shows as text, and assert that its buttons are pressed."""
    code = [int(word) for word in find(page, ".code").text.split()]
    pressed = page.find_elements(By.CSS_SELECTOR, ".categories [aria-pressed=true]")
    assert [int(button.text) for button in pressed] == code
    return code


# The explorer


@pytest.mark.parametrize("name", NETWORKS)
def test_decoded_pixels_equal_those_of_torch(page, models, name):
    Select(find(page, ".model")).select_by_visible_text(name)
    pictures = []
    for code in (CODE, [0, 3, 1]):
        for latent, category in enumerate(code):
            category_button(page, latent, category).click()
        assert shown_code(page) == code
        pictures.append(decode(models[name], code))
        assert (pixels_of(page, "decoded") - pictures[-1]).abs().max() < 1e-2
    assert (pictures[0] - pictures[1]).abs().max() > 0.2  # so that a wrong code is noticed
    assert pictures[0].std() > 0.1


def test_a_click_on_a_category_changes_the_picture_and_no_other_latent(page):
    before, code = pixels_of(page, "decoded"), shown_code(page)
    code[1] = (code[1] + 1) % CATEGORIES
    original = pixels_of(page, "original")
    category_button(page, 1, code[1]).click()
    assert shown_code(page) == code
    assert (pixels_of(page, "decoded") - before).abs().max() > 0.1
    assert torch.equal(pixels_of(page, "original"), original)


def test_a_category_under_the_pointer_is_previewed_and_not_chosen(page, models):
    before, code = pixels_of(page, "decoded"), shown_code(page)
    assert torch.equal(pixels_of(page, "preview"), before)
    assert pixels_of(page, "change").max() == 0
    changed = [code[0], code[1], (code[2] + 1) % CATEGORIES]
    ActionChains(page).move_to_element(category_button(page, 2, changed[2])).perform()
    expected = decode(models["linear"], changed)
    assert (pixels_of(page, "preview") - expected).abs().max() < 1e-2
    assert pixels_of(page, "change").max() > 0.1
    assert torch.equal(pixels_of(page, "decoded"), before)
    assert shown_code(page) == code
    ActionChains(page).move_to_element(find(page, "h1")).perform()
    assert torch.equal(pixels_of(page, "preview"), before)


def test_a_test_image_loads_its_most_probable_code(page, models, images):
    codes = modes(models["linear"], images).argmax(-1).tolist()
    assert len({*map(tuple, codes)}) > 3
    buttons = page.find_elements(By.CSS_SELECTOR, ".images button")
    assert len(buttons) == len(images)
    for button, image, code in zip(buttons, images, codes, strict=True):
        button.click()
        assert shown_code(page) == code
        assert torch.equal((pixels_of(page, "original") * 255).round().byte(), image)
        assert (pixels_of(page, "decoded") - decode(models["linear"], code)).abs().max() < 1e-2


def test_another_model_shows_its_own_code_of_the_same_image(page, models, images):
    page.find_elements(By.CSS_SELECTOR, ".images button")[3].click()
    Select(find(page, ".model")).select_by_visible_text("conv")
    assert shown_code(page) == modes(models["conv"], images[3:4]).argmax(-1)[0].tolist()


def test_samples_come_from_the_prior_of_the_model(page):
    category_button(page, 0, (CODE[0] + 1) % CATEGORIES).click()
    find(page, ".sample").click()
    assert shown_code(page) == CODE  # the prior has no other code
    assert pixels_of(page, "original").max() == 0


# The page


def test_no_request_leaves_the_page(page, page_file):
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0
    script = """
        const done = arguments[0];
        document.addEventListener("securitypolicyviolation", event => done(event.blockedURI));
        const image = new Image();
        image.src = "http://127.0.0.1:9/";
    """
    assert page.execute_async_script(script) == "http://127.0.0.1:9/"
    (message,) = errors_of(page)
    assert "Content Security Policy" in message


def column(page: WebDriver, number: int) -> list[str]:
    """Return the cells of a column of the table."""
    return [cell.text for cell in page.find_elements(By.CSS_SELECTOR, f"td:nth-child({number})")]


def test_a_click_on_a_heading_sorts_the_table(page):
    find(page, ".unfold").click()
    estimator, elbo, rate = page.find_elements(By.CSS_SELECTOR, "th button")
    elbo.click()
    assert column(page, 1) == ["b", "c", "a"]  # by number: as texts, -100.2 is before -9.5
    elbo.click()
    assert column(page, 1) == ["a", "c", "b"]
    rate.click()
    assert column(page, 1) == ["c", "b", "a"]
    rate.click()
    assert column(page, 1) == ["b", "c", "a"]  # a missing number stays last
    estimator.click()
    assert column(page, 1) == ["c", "b", "a"]


def test_columns_are_folded_until_they_are_asked_for(page):
    assert column(page, 3) == ["", "", ""]  # hidden text
    find(page, ".unfold").click()
    assert column(page, 3) == ["1.00", "-", "20.00"]


def test_page_is_dark_if_the_reader_prefers_dark(page, page_file):
    script = "return getComputedStyle(document.body)[arguments[0]].match(/\\d+/g).map(Number)"

    def brightness(scheme: str) -> list[float]:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        page.save_screenshot(str(page_file.with_name(f"{scheme}.png")))
        return [sum(page.execute_script(script, name)) for name in ("backgroundColor", "color")]

    background, text = brightness("light")
    assert background > text + 400
    background, text = brightness("dark")
    assert text > background + 400
    brightness("light")


def test_page_fits_a_phone(page, page_file):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.save_screenshot(str(page_file.with_name("phone.png")))
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
        assert find(page, ".decoded").size["width"] > 60
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
