"""The report of one run: a page that needs nothing from outside, or the same in Markdown."""
