"""How the built-in networks were trained, to be repeated by anyone."""
