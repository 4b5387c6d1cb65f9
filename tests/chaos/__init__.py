"""Longer forms of hostile tests, to be run by hand."""
