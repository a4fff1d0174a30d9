"""Formats in which an extracted size can be written."""
