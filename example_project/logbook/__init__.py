"""Summarize web server logs."""

from __future__ import annotations
