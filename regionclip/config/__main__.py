"""Print docs/config.md: `python -m regionclip.config > docs/config.md`."""

from regionclip.config.reference import config_page

if __name__ == "__main__":
    print(config_page())
