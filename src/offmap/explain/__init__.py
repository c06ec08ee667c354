"""Where and why: maps and neighbours."""
