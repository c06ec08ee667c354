"""One set of images against another."""
