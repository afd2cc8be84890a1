"""Sphinx settings of the site; `make site` copies this folder and the notebooks together and builds them."""

project = "cosquant-lite"
author = "the cosquant-lite authors"
copyright = "MIT licence"
extensions = ["myst_nb", "sphinx-mathjax-offline"]
html_theme = "furo"
html_title = "cosquant-lite"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_copy_source = False
nb_execution_mode = "off"  # the committed outputs are shown; `make test` checks that they are what the code gives
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 2
suppress_warnings = ["mystnb.unknown_mime_type"]
