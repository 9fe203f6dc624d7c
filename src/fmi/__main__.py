"""`python -m fmi ...`"""

from .commands import main

if __name__ == "__main__":
    main()
