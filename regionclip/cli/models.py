"""`regionclip models`: the detectors by name."""

from __future__ import annotations

from typing import Any

from regionclip.cli import options as shared


def models(as_json: shared.AsJson = False) -> None:
    """List the detectors by name: size, what is on this machine, license, and what is known of their accuracy.

    Example: regionclip models
    """
    from regionclip.engine.command import run_command

    def run() -> int:
        from tabulate import tabulate

        from regionclip.engine.command import DONE
        from regionclip.hub.default import default_model

        chosen, rows = default_model(), _rows()
        columns = ("name", "MB", "on this machine", "license")
        print(tabulate([[row[column] for column in columns] for row in rows], headers=columns))
        for row in rows:
            print(f"\n{row['name']}: {row['summary']}" + (f" {row['reported']}." if row["reported"] else ""))
        print(f"\nDone: {len(rows)} detectors; the default is {chosen.name} ({chosen.reason})")
        if as_json:
            shared.print_json({"default": chosen.name, "models": rows})
        return DONE

    run_command(run)


def _rows() -> list[dict[str, Any]]:
    from regionclip.hub.default import is_here
    from regionclip.hub.fetching import place_of
    from regionclip.hub.zoo import EMBEDDED, MODELS, files_of

    rows: list[dict[str, Any]] = [
        {
            "name": EMBEDDED,
            "MB": 14,
            "on this machine": "yes",
            "license": "Apache-2.0",
            "summary": "Emoji drawings only; comes with the package (pretrained_ckpt/emoji/README.md).",
            "reported": "",
        }
    ]
    for model in MODELS.values():
        files = files_of(model)
        present = sum(place_of(file) is not None for file in files)
        rows.append(
            {
                "name": model.name,
                "MB": sum(file.megabytes for file in files),
                "on this machine": "yes" if is_here(model) else f"{present} of {len(files)} files",
                "license": ", ".join(sorted({file.license for file in files})),
                "summary": model.summary,
                "reported": model.reported,
            }
        )
    return rows
