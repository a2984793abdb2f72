"""``python -m unetcli``."""

from unetcli.cli import main

if __name__ == "__main__":
    main()
