#!/usr/bin/env python3
"""Convert image-text pairs of any supported format to tar shards or upstream's TSV files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from regionclip.data.image_text.opening import FACTORIES, open_pairs
from regionclip.data.image_text.pairs import Pair
from regionclip.data.image_text.writing import PAIRS_IN_FILE, write_shards, write_tsv
from regionclip.engine.arguments import positive
from regionclip.engine.command import DONE, SOME_FAILED, log_to_console, run_command
from regionclip.progress import progress_bar

WRITERS = {"shards": write_shards, "tsv": write_tsv}


def convert() -> int:
    """Run the command; exit with 1 if a pair could not be read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", required=True, help="file or folder of pairs; a+b joins several")
    parser.add_argument("--format", required=True, choices=FACTORIES, help="of --input")
    parser.add_argument("--to", required=True, choices=WRITERS)
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--size", type=positive, default=PAIRS_IN_FILE, help="pairs of a file")
    args = parser.parse_args()
    failures: list[str] = []

    def pairs() -> Iterator[Pair]:
        for source in open_pairs(args.input, args.format):
            for number in progress_bar(range(len(source)), unit="pair"):
                try:
                    pair = source[number]
                    if not isinstance(pair.image, bytes):
                        pair = Pair(pair.key, pair.image.read_bytes(), pair.text)
                    yield pair
                except (OSError, ValueError) as error:
                    failures.append(str(error))

    written = WRITERS[args.to](pairs(), args.output, args.size)
    for failure in failures:
        print(f"Left out: {failure}")
    print(f"Done: {len(written)} files in {args.output}, {len(failures)} pairs left out")
    return SOME_FAILED if failures else DONE


if __name__ == "__main__":
    log_to_console()
    run_command(convert)
