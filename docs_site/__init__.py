"""What MkDocs adds to docs/ to make the site: the pages of the layer types and of the commands, and links.

    hooks.py          what mkdocs.yml names: MkDocs calls it, and nothing else here knows of MkDocs
    layer_pages.py    a page for each layer type, from its class, its docstring and the schema
    snippets.py       the prototxt on each of them
    command_pages.py  a page for each command, from its parser
    loss_pages.py     the weight curves and the fields of the losses
    docstrings.py     docstrings of this project as Markdown
    schema_tables.py  messages of the schema as tables
    links.py          links between files of the repository, for the site and for tests
    notebook_pages.py notebooks as Markdown

The pages are made when the site is built and are in no commit. `.ci/site` builds it; by hand, in an
environment with the extra `docs`: `python -m mkdocs serve`.
"""
