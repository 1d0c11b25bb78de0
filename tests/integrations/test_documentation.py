"""The site of the documentation: built strictly, complete, and searchable from a file without a network."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")

from synaptree.methods import METHODS

ROOT = Path(__file__).parents[2]


SHORT_SPACE = """
method_options.alpha_fc = { grid = [0.9] }
dense.epochs = { grid = [1] }
rounds.rounds = { grid = [1] }

[search]
kind = "grid"
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)], cwd=ROOT,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.parametrize(("name", "library"), [("tracking.md", "mlflow"), ("sweeps.md", "ray")])
def test_the_python_of_a_page_that_needs_a_library_runs(name, library, tmp_path, monkeypatch):
    pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    space = tmp_path / "recipes" / "spaces" / "demo.toml"  # for that of the checkout, which takes minutes
    space.parent.mkdir(parents=True)
    space.write_text(SHORT_SPACE)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(), flags=re.DOTALL)
    code = tmp_path / "page.py"
    code.write_text("\n".join(blocks))
    done = subprocess.run([sys.executable, str(code)], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert blocks
    assert done.returncode == 0, done.stderr


def test_every_page_of_the_folder_is_on_the_site(site):
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} <= {path.stem for path in site.glob("*.html")}


def test_every_method_of_the_registry_has_its_card(site):
    page = (site / "methods.html").read_text()
    for name, build in METHODS.items():
        if build.__module__.startswith("synaptree.methods."):
            assert f'id="{name}"' in page


def test_the_reference_shows_options_and_examples(site):
    page = (site / "api.html").read_text()
    assert "group" in page
    assert "&gt;&gt;&gt;" in page  # examples as code, not as quotes
    assert "<blockquote>" not in page


def test_the_site_is_searched_from_a_file_and_asks_nobody(site):
    sync_api = pytest.importorskip("playwright.sync_api")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("there is no chromium")
    asked, complaints = [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto((site / "index.html").as_uri())
        page.locator("input.md-search__input").click()
        page.keyboard.type("NNrelief")
        page.wait_for_selector(".md-search-result__item")
        found = page.locator(".md-search-result__meta").inner_text()
        browser.close()
    assert "matching document" in found
    assert not complaints
    assert not [url for url in asked if not url.startswith(("file:", "data:"))]
