"""From prepared images to named signals: whatever runs a network lives here."""
