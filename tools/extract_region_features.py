#!/usr/bin/env python3
"""Save the embeddings of regions: the published command line of `regionclip.cli.extract_region_features`."""

from regionclip.cli.extract_region_features import main

if __name__ == "__main__":
    main()
