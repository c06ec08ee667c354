"""Graded, seeded, synthetic strangeness with exact masks; and phantoms."""
