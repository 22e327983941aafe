"""What a crate costs beside its peers, measured in one run: ``tox -e bench``, see docs/benchmarks.md."""
