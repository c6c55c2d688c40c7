"""What mkdocs calls: adds the pages that are written from the code, draws trees, and keeps the site
free of anything that is fetched."""

import sys
from typing import TYPE_CHECKING, Any

from pages import all_pages
from trees import with_trees

from experiments.terminal.meanings import ROOT

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

SHIM = "https://unpkg.com/iframe-worker/shim"  # named by the plug-in `offline`
OURS = "_site/worker.js"


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the generated pages, before the navigation is read."""
    from mkdocs.structure.files import File

    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    for path, text in all_pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return with_trees(markdown)


def on_post_page(output: str, page: "Page", **_: Any) -> str:
    from mkdocs.utils import get_relative_url

    return output.replace(SHIM, get_relative_url(OURS, page.url))


def on_post_template(output_content: str, **_: Any) -> str:
    return output_content.replace(SHIM, OURS)
