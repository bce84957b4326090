"""The page in a real browser. Needs Gradio, Playwright and a Chromium; skipped, and said so, where one is missing."""

import base64
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page's tests need Gradio: pip install -e '.[app-test]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="they need Playwright: pip install -e '.[app-test]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the page's tests need an installed Chromium")

ROOT = Path(__file__).parent.parent.parent
PICTURES = ROOT / "examples" / "pictures"
WAIT = 120_000  # milliseconds: a first picture compiles


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def server(folder):
    """The command as a user starts it; its files lie in a folder of their own."""
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    words = [sys.executable, "-m", "jaxpa", "app", "--no-open", "--json", "--max-upload", "1"]
    process = subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield json.loads(process.stdout.readline())["url"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert list(folder.glob("jaxpa-app-*")) == []  # nothing of what was sent stays


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, server):
    """The page, ready; what it asks of others than its server, and what its scripts stumble over, fails the test."""
    shown = browser.new_page(viewport={"width": 1280, "height": 1300})
    shown.set_default_timeout(WAIT)
    asked, faults = [], []
    shown.on("request", lambda request: asked.append(request.url))
    shown.on("pageerror", lambda error: faults.append(str(error)))
    shown.goto(server)
    shown.wait_for_selector("#reference canvas")
    shown.wait_for_timeout(1000)
    yield shown
    assert {urlparse(url).netloc for url in asked if not url.startswith(("data:", "blob:"))} == {
        urlparse(server).netloc
    }
    assert faults == []
    shown.close()


def quick(page, steps: int = 3) -> None:
    """Few steps: what is compared does not hang on their number."""
    page.get_by_text("Settings", exact=True).click()
    page.wait_for_timeout(500)
    for field, value in (("#steps input[type=number]", steps), ("#seed input", 7)):
        page.fill(field, str(value))
        page.press(field, "Tab")


def drop_car(page) -> None:
    page.locator("#reference input[type=file]").first.set_input_files(PICTURES / "car.png")
    page.wait_for_selector("#cells img")


def drag(page, x, y, dx, dy) -> None:
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx, y + dy, steps=8)
    page.mouse.up()


def downloads(page, folder) -> Path:
    """Everything that the page offers, in a folder of its own."""
    own = Path(tempfile.mkdtemp(dir=folder))
    page.wait_for_selector("#files a")
    links = page.locator("#files a")
    for k in range(links.count()):
        with page.expect_download() as coming:
            links.nth(k).click()
        coming.value.save_as(own / coming.value.suggested_filename)
    return own


def middle(box):
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_upload_paint_place_draw_and_the_commands_bytes(page, folder):
    page.fill("#prompt textarea", "a yellow striped car on a beach")
    page.fill("#around textarea, #around input", "a beach")
    quick(page)
    drop_car(page)
    x, y = middle(page.locator("#reference canvas").first.bounding_box())
    drag(page, x - 50, y + 20, 100, 0)
    page.wait_for_function("document.querySelector('#canvas .jaxpa-box').style.width !== '100%'")
    drag(page, *middle(page.locator("#canvas .jaxpa-box").bounding_box()), -25, -40)
    page.wait_for_function("document.querySelector('#at textarea, #at input').value !== ''")
    at = page.locator("#at textarea, #at input").first.input_value()
    page.click("#draw")
    page.get_by_text("The picture took").wait_for()
    own = downloads(page, folder)
    assert sorted(file.name for file in own.iterdir()) == ["picture.png", "subject-1-mask.png", "subject-1.png"]

    # The picture that was uploaded, and the stroke that was painted, to the pixel.
    assert (np.asarray(Image.open(own / "subject-1.png").convert("RGB")) == np.asarray(
        Image.open(PICTURES / "car.png").convert("RGB"))).all()  # fmt: skip
    mask = np.asarray(Image.open(own / "subject-1-mask.png")) > 127
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert np.ptp(cols) > 2 * np.ptp(rows)  # it runs from left to right
    assert abs(cols.mean() - 192) < 20

    words = shlex.split(page.locator("#command .cm-content").inner_text().replace("\n", ""))
    assert words[:2] == ["jaxpa", "personalize"]
    assert words[words.index("--at") + 1] == at
    assert words[words.index("--surroundings") + 1] == "a beach"
    assert "--guidance" not in words  # nothing was said of it
    drawn = (own / "picture.png").read_bytes()
    (own / "picture.png").unlink()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-m", *words, "--no-figure"], cwd=own, env=environment, check=True, timeout=300)
    assert (own / "picture.png").read_bytes() == drawn


def test_what_is_wrong_is_a_sentence(page):
    page.click("#draw")
    page.get_by_text("give at least one subject, or a scene").wait_for()
    page.fill("#taus textarea, #taus input", "0.5 many")
    page.click("#strip")
    page.get_by_text("give a flow time in [0, 1]").wait_for()


def test_a_preset_moves_tau(page):
    """To where its pictures are made, on every tab that has one: PRESETS' official, and what the checkpoint has."""
    page.get_by_text("Settings", exact=True).click()
    page.wait_for_timeout(500)
    for name, taus in (("official", (0.6, 0.45, 0.7)), ("the checkpoint's own", (0.5, 0.19, 0.19))):
        page.click("#preset input")
        page.get_by_role("option", name=name).click()
        for tab, field, tau in zip(("Subjects", "Inpaint", "Outpaint"), ("tau", "inpaint-tau", "outpaint-tau"), taus,
                                   strict=True):  # fmt: skip
            page.get_by_role("tab", name=tab).click()
            page.wait_for_function(f"document.querySelector('#{field} input[type=number]')?.value === '{tau}'")


def test_a_file_that_is_too_large_is_refused(page, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > 2**20
    page.locator("#reference input[type=file]").first.set_input_files(tmp_path / "large.png")
    page.get_by_text("The file is larger than this page takes").wait_for()


def test_a_click_grows_a_region_of_its_colour(page):
    drop_car(page)
    box = page.locator("#cells img").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.1, box["y"] + box["height"] * 0.06)  # the sky
    page.wait_for_function("document.querySelector('#canvas .jaxpa-box')?.style.height.slice(0, 3) < '90%'")
    style = page.locator("#canvas .jaxpa-box").get_attribute("style")
    assert "top: 0%" in style


def test_hovering_a_word_lights_where_it_looks(page):
    import jaxpa

    page.fill("#prompt textarea", "a red star")
    quick(page)
    page.get_by_role("tab", name="Attention").click()
    page.click("#look")
    page.wait_for_selector("#view .jaxpa-word")
    pipe = jaxpa.load("mini")
    seen = pipe.attention("a red star", seed=7, steps=3)
    mean, m = seen.maps.mean((0, 1)), seen.text
    (token,) = pipe.tokenizers.word_tokens("a red star", "star", m)
    page.locator("#view .jaxpa-word", has_text="star").hover()
    lit = page.wait_for_function("document.querySelector('#view [data-lit]')?.dataset.lit ?? "
                                 "document.querySelector('#view').dataset.lit")  # fmt: skip
    row = mean[token, m:]
    assert row[int(lit.json_value())] >= row.max() * (1 - 1 / 255)
    canvas = page.locator("#view canvas").evaluate("c => c.toDataURL()")
    assert base64.b64decode(canvas.partition(",")[2])[:4] == b"\x89PNG"
    box = page.locator("#view .jaxpa-view").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 7.5 / 12, box["y"] + box["height"] * 4.5 / 12)
    page.get_by_text("What the cell in row 5, column 8 attends to").wait_for()


def words_of_the_command(page) -> list[str]:
    return shlex.split(page.locator("#command .cm-content").inner_text().replace("\n", ""))


def paint(page, name) -> None:
    """A stroke over the middle of an editor's picture."""
    box = page.locator(f"{name} canvas").first.bounding_box()
    x, y = middle(box)
    drag(page, x - 50, y + 15, 100, 0)
    page.wait_for_timeout(1500)


def test_two_subjects_a_scene_and_a_strip_of_taus(page, folder):
    page.fill("#prompt textarea", "a car and a cat on a beach")
    quick(page)
    drop_car(page)
    paint(page, "#reference")
    page.click("#keep")
    page.wait_for_selector("#cells img", state="detached")
    page.locator("#reference input[type=file]").first.set_input_files(PICTURES / "cat.png")
    page.wait_for_selector("#canvas .jaxpa-box:nth-child(2)")
    paint(page, "#reference")
    page.get_by_text("A scene", exact=True).click()
    page.locator("#scene input[type=file]").first.set_input_files(PICTURES / "boat.png")
    page.wait_for_function("document.querySelector('#canvas .jaxpa-stage').style.backgroundImage !== ''")
    page.fill("#taus textarea, #taus input", "0.9 40%")
    page.click("#strip")
    page.get_by_text("2 pictures took").wait_for()
    words = words_of_the_command(page)
    assert [word for word in words if word.startswith("--") or word.endswith("png")] == [
        "--prompt", "--seed", "--steps", "--tau", "--subject", "subject-1.png", "--mask", "subject-1-mask.png",
        "--subject", "subject-2.png", "--mask", "subject-2-mask.png", "--scene", "scene.png", "--out", "picture.png",
    ]  # fmt: skip
    own = downloads(page, folder)
    assert {"picture-tau0.9.png", "picture-tau40%.png", "scene.png"} <= {file.name for file in own.iterdir()}
    shown = page.locator("#picture img").evaluate("image => image.naturalWidth / image.naturalHeight")
    assert shown > 1.5  # a strip


def test_inpaint_and_outpaint(page, folder):
    page.fill("#prompt textarea", "a car on a beach")
    quick(page)
    page.get_by_role("tab", name="Inpaint").click()
    page.wait_for_selector("#inpainted canvas")
    page.wait_for_timeout(1000)
    page.click("#inpaint")
    page.get_by_text("there is no picture yet").wait_for()
    page.locator("#inpainted input[type=file]").first.set_input_files(PICTURES / "car.png")
    page.wait_for_timeout(3000)
    paint(page, "#inpainted")
    page.click("#inpaint")
    page.get_by_text("The picture took").wait_for()
    own = downloads(page, folder)
    assert sorted(file.name for file in own.iterdir()) == ["mask.png", "original.png", "picture.png"]
    page.get_by_role("tab", name="Outpaint").click()
    page.locator("#outpainted input[type=file]").first.set_input_files(PICTURES / "car.png")
    page.wait_for_selector("#outpainted img")
    page.get_by_label("Pixels to add, right").fill("128")
    page.click("#outpaint")
    page.wait_for_function("document.querySelector('#command .cm-content')?.innerText.includes('jaxpa outpaint')")
    words = words_of_the_command(page)
    assert words[words.index("--pad") + 1] == "0,128,0,0"
    page.get_by_text("The picture took").wait_for()
    shown = page.locator("#picture img").evaluate("image => image.naturalWidth / image.naturalHeight")
    assert 1.2 < shown < 1.45  # 512 x 384, on whole cells


def test_stopping(page):
    page.fill("#prompt textarea", "a red star")
    quick(page, 50)
    for side in ("#height input", "#width input"):  # large, so that it is not over before the click
        page.fill(side, "256")
        page.press(side, "Tab")
    page.get_by_role("tab", name="Words alone").click()
    page.click("#generate")
    page.wait_for_function("document.querySelector('#status').innerText.includes('sample: step')")
    page.wait_for_selector("#picture img")  # as it goes
    page.click("#stop")
    page.get_by_text("Stopped.").wait_for()
    page.fill("#steps input[type=number]", "3")
    page.press("#steps input[type=number]", "Tab")
    page.click("#generate")
    page.get_by_text("The picture took").wait_for()


def test_it_listens_on_this_machine_alone(server):
    port = urlparse(server).port
    assert urlparse(server).hostname == "127.0.0.1"
    with urlopen(server, timeout=5) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "googleapis" not in answer.read().decode()
    with socket.socket() as other:  # another address of the loopback stands for those of the network
        assert other.connect_ex(("127.0.0.2", port)) != 0
