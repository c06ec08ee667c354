"""Networks that are trained while a gate is fitted: one file a trainer, named in a recipe as ``train:<file>``."""
