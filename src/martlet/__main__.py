"""`python -m martlet` is `martlet`."""

from martlet.cli.__main__ import main

if __name__ == "__main__":
    main()
