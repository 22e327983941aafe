"""Plugins of the measured pytest runs; each file is copied into their environments."""
