"""From signals to scores: one file a method, higher = more OOD."""
