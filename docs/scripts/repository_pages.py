"""README.md as the first page, and a page for each file of the repository to which a page links."""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "repository"  #: of the site, for the pages of files
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")
_FENCES = {".py": "python", ".sh": "bash", ".sbatch": "bash"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README.md and the files that pages link to."""
    files.append(File.generated(config, "index.md", content=in_site((ROOT / "README.md").read_text(), "README.md")))
    waiting = ["README.md", *(f"docs/{file.src_uri}" for file in files.documentation_pages() if not file.generated_by)]
    done: set[str] = set()
    while waiting:
        source = waiting.pop()
        for path in sorted(linked_files((ROOT / source).read_text(), source) - done):
            done.add(path)
            files.append(File.generated(config, f"{FOLDER}/{path}.md", content=_page(path)))
            waiting += [path] if path.endswith(".md") else []
            waiting += []
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links to the repository's files lead to their pages."""
    return markdown if page.file.generated_by else in_site(markdown, f"docs/{page.file.src_uri}")


def linked_files(markdown: str, source: str) -> set[str]:
    """Files and folders of the repository, outside of docs, that a file of it links to."""
    targets = {_target(link, source) for link in _LINK.findall(markdown)}
    return {target for target in targets if _uri(target).startswith(f"{FOLDER}/")}


def in_site(markdown: str, source: str) -> str:
    """A Markdown file of the repository with its links as they are in the site.

    Args:
        markdown: Its text.
        source: Its path in the repository.

    Raises:
        FileNotFoundError: A link leads to no file.
    """
    here = PurePosixPath(_uri(source)).parent.as_posix()
    return _LINK.sub(lambda match: relpath(_uri(_target(match[1], source)), here), markdown)


def _target(link: str, source: str) -> str:
    path = normpath((PurePosixPath(source).parent / link).as_posix())
    if not (ROOT / path).exists() and not path.startswith("docs/"):  # MkDocs itself tells of its own pages
        raise FileNotFoundError(f"{source} links to '{link}', which is not in the repository")
    return path


def _uri(path: str) -> str:
    """Where a file of the repository is in the site's sources."""
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{FOLDER}/{path}.md"


def _page(path: str) -> str:
    file = ROOT / path
    if file.is_dir():
        names = sorted(one.name for one in file.iterdir() if one.is_file() and not one.name.startswith("_"))
        return "\n".join([f"# `{path}`", "", *(f"- `{name}`" for name in names), ""])
    text = file.read_text()
    return (
        in_site(text, path)
        if file.suffix == ".md"
        else f"# `{path}`\n\n```{_FENCES.get(file.suffix, 'text')}\n{text}\n```\n"
    )
