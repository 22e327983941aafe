"""Sphinx configuration."""

from __future__ import annotations

import pytest_crate

project = "pytest-crate"
author = "pytest-crate developers"
copyright = author  # noqa: A001  # Sphinx wants this name
version = release = pytest_crate.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
# Parts of parity.md and places.md.
exclude_patterns = ["_build", "examples", "parity-results.md", "places-results.md"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"

html_theme = "alabaster"
html_theme_options = {"description": "Hermetic pytest tests with kernel-enforced limits", "fixed_sidebar": True}
