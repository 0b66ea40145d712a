"""What MkDocs calls when it builds the site; mkdocs.yml names this file.

Pages that are made here: layers/, commands/, the changelog and other files of the top folder, notebooks. All
other pages are the files of docs/. Links are rewritten. MkDocs must be started as `python -m mkdocs`, in the
top folder: so Python finds this package.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import imae
from docs_site import api_page, command_pages, layer_pages, links, loss_pages, notebook_pages
from imae.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
SCRATCH = tempfile.TemporaryDirectory(prefix="imae-site-")  # until the process ends
STYLE = Path(__file__).with_name("style.css")
Nav = list[dict[str, Any]]


@event_priority(100)  # type: ignore[untyped-decorator]  # before mkdocstrings reads its settings
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show mkdocstrings the package: its parts lie in the top folder, and are mapped when it is installed."""
    api_page.link_package(ROOT, Path(SCRATCH.name))
    plugin: Any = config.plugins["mkdocstrings"]
    plugin.config.handlers["python"]["paths"] = [SCRATCH.name]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and put those of layers and commands into the navigation."""
    for path, content in _made():
        files.append(File.generated(config, path, content=content))
    for notebook in sorted(Path(config.docs_dir, "notebooks").glob("*.ipynb")):
        text, images = notebook_pages.page(notebook)
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=text))
        for name, data in images.items():
            files.append(File.generated(config, f"notebooks/{name}", content=data))
    assert config.nav is not None
    _section(config.nav, "Layers").extend(_layer_nav())
    _section(config.nav, "Commands").extend(
        {task: [{f"imae {name}": command_pages.path(name)} for name in names]}
        for task, names in command_pages.by_task().items()
    )
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page, and add what the site adds to some pages."""
    own = page.file.src_uri
    if own == "losses.md":
        markdown = f"{markdown.rstrip()}\n\n{loss_pages.appendix()}"
    if own == "api.md":
        markdown = api_page.completed(markdown, imae.__all__)
    outside = {site: path for path, site in links.PAGES.items() if site != "index.md"}
    path = outside.get(own, f"docs/{own}")
    return links.for_site(
        markdown, path, lambda uri: files.get_file_from_path(uri) is not None, config.repo_url
    )


def _made() -> Iterator[tuple[str, str]]:
    for path, page in links.PAGES.items():
        if page != "index.md":
            yield page, (ROOT / path).read_text(encoding="utf-8")
    yield "layers/index.md", layer_pages.index_page()
    yield layer_pages.MESSAGES_PAGE, layer_pages.messages_page()
    for layer in layer_pages.layer_pages():
        yield layer.path, layer_pages.page_text(layer)
    yield "commands/index.md", command_pages.index_page()
    for name in COMMANDS:
        yield command_pages.path(name), command_pages.page_text(name)
    yield "assets/site.css", STYLE.read_text(encoding="utf-8")


def _layer_nav() -> Nav:
    pages = layer_pages.layer_pages()
    nav: Nav = [
        {title: [{page.type_name: page.path} for page in pages if page.drawer == drawer]}
        for drawer, title in layer_pages.GROUPS.items()
    ]
    return [*nav, {"Messages": layer_pages.MESSAGES_PAGE}]


def _section(nav: list[Any], title: str) -> list[Any]:
    for entry in nav:
        if isinstance(entry, dict) and title in entry:
            section: list[Any] = entry[title]
            return section
    raise KeyError(f"mkdocs.yml: nav has no section {title!r}")
