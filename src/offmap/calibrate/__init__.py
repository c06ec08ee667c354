"""From scores to p-values and surprise in bits."""
