"""`python -m tinybert_hf`, the same as `tinybert`."""

from .cli import main

if __name__ == "__main__":
    main()
