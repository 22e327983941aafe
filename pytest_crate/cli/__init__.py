"""The pytest-crate command."""
