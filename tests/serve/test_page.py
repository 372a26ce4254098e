"""The page in a real browser, against what the API answers."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.browser import chromium
from helpers.processes import wait_until
from helpers.serving import Server
from PIL import Image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("browser") / "profile") as driver:
        yield driver


@pytest.fixture
def page(browser: Any, server: Server) -> Any:
    """The page, once it lists both tasks."""
    browser.get(server.url)
    wait_until(lambda: len(all_of(browser, "#tasks input")) == 2, 60, lambda: browser.page_source)
    return browser


def all_of(page: Any, selector: str) -> list[Any]:
    return page.find_elements("css selector", selector)


def choose(page: Any, data: bytes, tmp_path: Path, name: str = "photo.png") -> None:
    (tmp_path / name).write_bytes(data)
    page.find_element("id", "file").send_keys(str(tmp_path / name))


def wait_for_cards(page: Any, count: int) -> None:
    done = "article:not(.waiting) .found li"
    wait_until(
        lambda: (
            len(all_of(page, "article")) == count == len({e.id for e in all_of(page, "article:not(.waiting)")})
            and all_of(page, done)
        ),
        60,
        lambda: page.page_source[-3000:],
    )


def test_an_image_is_drawn_by_both_tasks_side_by_side(
    page: Any, server: Server, make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    data = make_picture(5, (120, 90))
    choose(page, data, tmp_path)
    wait_for_cards(page, 2)
    assert [one.text for one in all_of(page, "article h2")] == ["objects", "regions"]
    for name, image in zip(("objects", "regions"), all_of(page, ".drawn"), strict=True):
        shown = base64.b64decode(image.get_attribute("src").partition(",")[2])
        expected = server.predict(name, data, "?format=drawn&score=0.3")
        assert np.array_equal(*(np.asarray(Image.open(io.BytesIO(one))) for one in (shown, expected)))
        assert page.execute_script("return arguments[0].complete && arguments[0].naturalWidth", image) == 120
    told = server.predict("regions", data)
    (legend,) = all_of(page, "article[data-task=regions] .found")
    present = {told["classes"][int(label)] for label in told["pixels"]}
    assert {line.split("\n")[0].split(" ")[0] for line in legend.text.splitlines() if line} >= present
    colour = all_of(page, "article[data-task=regions] .found i")[0].value_of_css_property("background-color")
    most = max(told["pixels"], key=lambda label: told["pixels"][label])
    assert colour == f"rgba({', '.join(map(str, told['palette'][int(most)]))}, 1)"
    first, second = (one.rect for one in all_of(page, "article"))
    assert first["y"] == second["y"] and first["x"] + first["width"] <= second["x"]


def test_the_slider_uncovers_the_image_under_all_results(
    page: Any, make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    from selenium.webdriver import ActionChains

    choose(page, make_picture(5), tmp_path)
    wait_for_cards(page, 2)
    slider = all_of(page, ".view input")[0]
    ActionChains(page).move_to_element(slider).click().perform()
    for drawn in all_of(page, ".drawn"):
        clip = drawn.value_of_css_property("clip-path")
        left = float(clip.removeprefix("inset(").removesuffix(")").split()[-1].removesuffix("%"))
        assert 45 < left < 55


def test_tasks_are_ticked_and_wrong_files_told(
    page: Any, server: Server, make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    choose(page, make_picture(6, (300, 200)), tmp_path)  # more pixels than the server takes
    wait_for_cards(page, 2)
    about = page.find_element("id", "about").text
    assert "300" in about and "the server takes no more" in about
    all_of(page, "#tasks input")[0].click()
    wait_for_cards(page, 1)
    choose(page, b"no image", tmp_path, "note.png")
    wait_until(lambda: page.find_element("id", "trouble").is_displayed(), 30, lambda: page.page_source)
    assert "note.png" in page.find_element("id", "trouble").text
    # what the browser shows and the server does not take
    gif = make_picture(7, (60, 60), "GIF")
    choose(page, gif, tmp_path, "picture.gif")
    wait_until(lambda: all_of(page, "article .error"), 30, lambda: page.page_source)
    (error,) = all_of(page, "article .error")
    assert not all_of(page, "article .drawn")[0].is_displayed()
    told = server.ask("POST", "/v1/predict/regions", gif).json
    assert error.text == f"{told['error']}: {told['cure']}"


def test_nothing_comes_from_elsewhere_and_nothing_is_wrong(page: Any, server: Server, browser: Any) -> None:
    browser.get(f"{server.url}/docs")
    wait_until(lambda: "/v1/predict/{task}" in browser.page_source, 60, lambda: browser.page_source[-2000:])
    messages = [json.loads(one["message"])["message"] for one in browser.get_log("performance")]
    sent = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    assert any(url.endswith("/page.js") for url in sent) and any(url.endswith("/openapi.json") for url in sent)
    assert [url for url in sent if not url.startswith((server.url, "data:", "blob:", "chrome:"))] == []
    wrong = [one["message"] for one in browser.get_log("browser") if one["level"] == "SEVERE"]
    assert [line for line in wrong if "415" not in line] == []


def test_on_a_phone_results_are_one_below_the_other(
    server: Server, make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    with chromium(tmp_path / "phone", 390, 844, phone=True) as page:
        page.get(server.url)
        wait_until(lambda: len(all_of(page, "#tasks input")) == 2, 60, lambda: page.page_source)
        choose(page, make_picture(5, (120, 90)), tmp_path)
        wait_for_cards(page, 2)
        first, second = (one.rect for one in all_of(page, "article"))
        assert first["x"] == second["x"] and first["y"] + first["height"] <= second["y"]
        wide = page.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1] == 390
