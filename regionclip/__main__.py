"""`python -m regionclip` runs the command `regionclip`."""

from regionclip.cli.main import main

if __name__ == "__main__":
    main()
