"""Notebooks as pages, as they are: a test runs them, and their outputs are not kept."""

from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter


class _Notebook(File):
    """A page whose source is a notebook, so that links to it are right in the repository and in the site."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Turn notebooks from files that are copied into pages."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        files.append(_Notebook(file.src_uri, file.src_dir, config.site_dir, config.use_directory_urls))
    return files


def on_page_read_source(page: Any, **_: Any) -> str | None:
    """The Markdown of a notebook; None of other pages."""
    if not page.file.src_uri.endswith(".ipynb"):
        return None
    notebook = nbformat.read(page.file.abs_src_path, as_version=4)
    markdown, _ = MarkdownExporter().from_notebook_node(notebook)
    return markdown
