"""The pytest plugin: options, marker, walk, fixtures."""
