#!/usr/bin/env python3
"""Words a second of the text encoder, template by template, and of whole prompts, in turns.

python benchmarks/text.py [--model emoji] [--words 1174] [--repeats 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics

from benchmarks.timing import seconds_of
from regionclip.clip import embedder as embedder_module
from regionclip.clip.prompts import prompt_ensemble
from regionclip.data.class_lists import CLASS_LISTS
from regionclip.hub.pretrained import load_pretrained


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--words", type=int, default=1174)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    embedder = load_pretrained(args.model).embedder()
    embedder.cache = None
    groups = [*CLASS_LISTS["emoji"](), *CLASS_LISTS["lvis"]()]
    words = list(dict.fromkeys(group if isinstance(group, str) else group[0] for group in groups))[: args.words]
    ensemble = prompt_ensemble("regionclip")
    limits = {"whole prompts": len(words) + 1, "template by template": embedder_module.WORTHWHILE}
    rates: dict[str, list[float]] = {name: [] for name in limits}
    for _ in range(args.repeats):
        for name, limit in limits.items():
            embedder_module.WORTHWHILE = limit
            rates[name].append(len(words) / seconds_of(lambda: embedder.embed(words, ensemble)))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    plain, ours = medians.values()
    print(f"{len(words)} words: {plain:.0f} words a second by whole prompts, {ours:.0f} template by template:")
    print(f"{ours / plain:.2f} times as fast")
    if args.json:
        print(json.dumps({"words": len(words), "words_per_second": medians, "ratio": ours / plain}))


if __name__ == "__main__":
    main()
