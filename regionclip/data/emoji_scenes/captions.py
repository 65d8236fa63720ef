"""Captions of scenes: what stands out, how many, and where."""

from __future__ import annotations

from collections import Counter

from numpy.random import PCG64, Generator, SeedSequence

from regionclip.data.emoji_scenes.scenes import Scene, SceneObject

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

OPENINGS = ("{}", "an image of {}", "there is {}", "{} on a busy background", "a scene with {}", "one can see {}")
SIDES = ("on the left", "in the middle", "on the right")
HEIGHTS = ("at the top", "", "at the bottom")
JOINTS = (" next to ", " and ", ", ", " together with ")


def captions_of(scene: Scene, seed: int, number: int, count: int = 2) -> list[str]:
    """Return captions of a scene, the same for the same seed and number.

    Each names one to four of the objects, large ones rather than small ones; equal ones are counted, and
    some are given a place.
    """
    random = Generator(PCG64(SeedSequence([seed, number, 1])))
    return [_caption(random, scene) for _ in range(count)]


def _caption(random: Generator, scene: Scene) -> str:
    if not scene.objects:
        return "an empty scene"
    by_size = sorted(scene.objects, key=lambda item: -item.area * random.uniform(0.5, 1))
    named = by_size[: int(random.integers(1, 5))]
    counts = Counter(item.concept.name for item in scene.objects)
    phrases = []
    for name in dict.fromkeys(item.concept.name for item in named):
        first = next(item for item in named if item.concept.name == name)
        phrases.append(_phrase(random, first, counts[name], scene))
    joint = JOINTS[random.integers(len(JOINTS))]
    text = phrases[0] if len(phrases) == 1 else joint.join(phrases[:-1]) + " and " + phrases[-1]
    return OPENINGS[random.integers(len(OPENINGS))].format(text)


def _phrase(random: Generator, item: SceneObject, count: int, scene: Scene) -> str:
    name = item.concept.name
    if count > 1:
        return f"{NUMBERS[count]} times {name}" if name.endswith("s") else f"{NUMBERS[count]} {plural(name)}"
    text = f"{article(name)} {name}"
    return f"{text} {_place(item, scene)}" if random.random() < 0.4 else text


def _place(item: SceneObject, scene: Scene) -> str:
    left, top, width, height = item.box
    column = int(3 * (left + width / 2) / scene.pixels.shape[1])
    row = int(3 * (top + height / 2) / scene.pixels.shape[0])
    return " ".join(part for part in (HEIGHTS[min(row, 2)], SIDES[min(column, 2)]) if part)


def article(name: str) -> str:
    """Return `a` or `an`."""
    return "an" if name[0] in "aeiou" else "a"


def plural(name: str) -> str:
    """Return the plural of a name; of `face with ...` it is the first word that changes."""
    for mark in (" with ", " of ", " in ", " without "):
        if mark in name:
            head, rest = name.split(mark, 1)
            return f"{plural(head)}{mark}{rest}"
    if name.endswith(("ch", "sh", "x")):
        return f"{name}es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}s"
