"""python -m gdssm: the command line, for where the command `gdssm` is not on the path."""

from .cli import main

if __name__ == "__main__":
    main()
