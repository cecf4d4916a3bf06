"""Tests mirror the package, room by room; arch/ and conformance/ judge the whole."""
