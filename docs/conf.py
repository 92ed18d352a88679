"""How `make docs` builds the site: Markdown pages by MyST, no network, a warning is an error."""

project = "fedjax_rai"
author = "The fedjax_rai authors"
extensions = ["myst_parser"]
root_doc = "index"
exclude_patterns = []
myst_heading_anchors = 3  # a link to a heading is checked like any other
html_theme = "alabaster"
html_theme_options = {
    "description": "Responsible federated fine-tuning of language models in JAX",
    "fixed_sidebar": True,
    "page_width": "1180px",
    "sidebar_width": "240px",
}
html_show_sourcelink = False
html_copy_source = False
