"""What 'offmap data' knows: names, sources, checksums."""
