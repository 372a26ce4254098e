"""The site: it is built strictly, is whole without a network, and its links lead somewhere."""

import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from helpers import ROOT
from helpers.optional import needs
from helpers.processes import run
from markdown_it import MarkdownIt

pytestmark = pytest.mark.slow

#: attribute -> what a browser loads for it
LOADED = {"link": "href", "script": "src", "img": "src", "source": "src", "iframe": "src"}


class Page(HTMLParser):
    """What a page of HTML links to, loads, and can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if LOADED.get(tag) in values and values.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(values[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    environment = dict(NO_MKDOCS_2_WARNING="1")
    run(sys.executable, "-m", "mkdocs", "build", "-d", folder, cwd=ROOT, env=environment)
    return folder


def test_links_and_anchors_lead_somewhere_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 40
    broken = []
    for path, page in pages.items():
        outside = [url for url in page.loads if urlsplit(url).scheme in ("http", "https") or url.startswith("//")]
        assert not outside, f"{path.relative_to(site)} loads {outside}"
        for url in [*page.links, *page.loads]:
            parts = urlsplit(url)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchors = pages[target].anchors if target in pages else set()
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in anchors):
                broken.append(f"{path.relative_to(site)}: {url}")
    assert not broken, "\n".join(broken)


def test_every_page_is_in_the_navigation_and_has_what_its_source_has(site: Path) -> None:
    home = (site / "index.html").read_text()
    for source in (*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("notebooks/*.ipynb")):
        page = source.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert f'href="{page}"' in home, page
    assert "<math" in (site / "method.html").read_text()
    reference = (site / "reference.html").read_text()
    for name in ("apla_mm.train", "apla_mm.adapt", "apla_mm.tuning.apla_hook.APLAHook", "apla_mm.delta.load_delta"):
        assert f'id="{name}"' in reference
    assert ":func:" not in reference and ":class:" not in reference
    notebook = re.sub(r"<[^>]+>", "", (site / "notebooks/five_minutes.html").read_text())
    assert "trained = apla_mm.train(" in notebook


def relative_links(markdown: str) -> Iterator[str]:
    for token in MarkdownIt().enable("table").parse(markdown):
        for child in token.children or ():
            url = str(child.attrs.get("href") or child.attrs.get("src") or "")
            if url and not urlsplit(url).scheme:
                yield url


def test_links_of_the_readme_and_the_changelog_lead_to_files_and_headings() -> None:
    for name in ("README.md", "CHANGELOG.md"):
        links = list(relative_links((ROOT / name).read_text()))
        assert links
        for link in links:
            path, _, fragment = link.partition("#")
            target = ROOT / path
            assert target.exists(), f"{name}: {link}"
            if fragment:
                headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert fragment in slugs, f"{name}: {link}"


def test_the_readme_fits_a_screen_and_a_half() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_a_page_with_an_anchor_that_does_not_exist_does_not_build(tmp_path: Path) -> None:
    needs("mkdocs")
    for name in ("README.md", "LICENSE", "apla_mm", "configs", "demo", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "docs/serving.md").open("a") as page:
        page.write("\n[nowhere](deltas.md#no-such-heading)\n")
    (tmp_path / "docs/reference.md").write_text("# Reference\n")  # it is most of the time
    (tmp_path / "mkdocs.yml").write_text((ROOT / "mkdocs.yml").read_text())
    done = run(sys.executable, "-m", "mkdocs", "build", "-d", tmp_path / "site", cwd=tmp_path, returncode=None)
    assert done.returncode == 1 and "#no-such-heading" in done.output


def test_the_plot_of_the_evidence_is_its_tables() -> None:
    spec = spec_from_file_location("evidence_plots", ROOT / "docs/scripts/evidence_plots.py")
    assert spec and spec.loader
    evidence_plots = module_from_spec(spec)
    sys.modules[spec.name] = evidence_plots
    spec.loader.exec_module(evidence_plots)
    assert evidence_plots.PLOT.read_text() == evidence_plots.plot(), "run python docs/scripts/evidence_plots.py"
