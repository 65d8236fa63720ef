#!/usr/bin/env python3
"""Train or evaluate a detector: the published command line of `regionclip.cli.train_net`."""

from regionclip.cli.train_net import main

if __name__ == "__main__":
    main()
