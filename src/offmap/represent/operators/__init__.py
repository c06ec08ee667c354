"""Linear measurement operators, one file each: ``y = A x + noise``."""
