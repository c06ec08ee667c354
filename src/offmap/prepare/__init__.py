"""From image to image: window, rescale, resample, crop, mask. Every step is recorded and replayed."""
