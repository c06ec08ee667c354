"""The contracts as a public test suite."""
