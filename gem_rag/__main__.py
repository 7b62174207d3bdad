"""`python -m gem_rag`: the command line, where the script is not on the path (torchrun)."""

from gem_rag.cli import main

if __name__ == "__main__":
    main()
