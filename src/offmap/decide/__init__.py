"""Accept, review, reject, or not assessed."""
