"""``python -m offmap``, and ``torchrun -m offmap``."""

from offmap.cli import main

if __name__ == "__main__":
    main()
