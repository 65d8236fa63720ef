"""Prompt templates for class names."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from regionclip.errors import user_error
from regionclip.files import existing_file, read_lines

PROMPT_TEMPLATES: tuple[str, ...] = (
    "{}.",
    "a photo of a {}.",
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)
"""The class name alone, then OpenAI's 80 ImageNet templates in upstream's order."""


def fill_template(template: str, name: str) -> str:
    """Insert `name` into `template`; commas are removed and `+` becomes a space, as upstream does."""
    return template.replace("{}", name.replace(",", "").replace("+", " "))


@dataclass(frozen=True)
class PromptEnsemble:
    """Prompt templates, and how the embeddings of their prompts are averaged."""

    name: str
    templates: tuple[str, ...]
    """Each with `{}` in place of the class name."""
    normalized: bool = False
    """Whether to average unit vectors and normalize the mean; else the raw embeddings are averaged."""

    @property
    def fingerprint(self) -> str:
        """A short hash of what determines a class embedding, apart from the weights."""
        return hashlib.sha256(json.dumps([self.templates, self.normalized]).encode()).hexdigest()[:16]


PROMPT_ENSEMBLES = {
    ensemble.name: ensemble
    for ensemble in (
        PromptEnsemble("regionclip", PROMPT_TEMPLATES),
        PromptEnsemble("cora", PROMPT_TEMPLATES[1:], normalized=True),
        PromptEnsemble("single", ("a photo of a {}.",)),
        PromptEnsemble("name", ("{}",)),
        PromptEnsemble("ralf", ("a photo of a {}",)),
        PromptEnsemble("raf", ("a photo of {}",)),
    )
}
"""RegionCLIP's 81 templates, CORA's 80, the default template of CLIP's authors, the name alone (LP-OVOD), and
those of RALF for negative words and for RAF."""


def prompt_ensemble(templates: str | Sequence[str] | PromptEnsemble) -> PromptEnsemble:
    """Return an ensemble by name, from a text file with one template per line, or from templates.

    Raises:
        UserError: unknown name, no template, or a template without `{}`.
    """
    if isinstance(templates, PromptEnsemble):
        return templates
    if isinstance(templates, str):
        if templates in PROMPT_ENSEMBLES:
            return PROMPT_ENSEMBLES[templates]
        if existing_file(templates) is None:
            expected = f"{', '.join(PROMPT_ENSEMBLES)}, or a text file with a template on each line"
            raise user_error("templates", expected, repr(templates), "correct the name or the path")
        templates = read_lines(templates, "templates")
    without = [template for template in templates if "{}" not in template]
    if without or not templates:
        actual = repr(without[0]) if without else "none"
        raise user_error("templates", "sentences with {} for the word", actual, 'write such as "a photo of a {}."')
    return PromptEnsemble("custom", tuple(templates))


def same_to_clip(word: str) -> str:
    """Return a class name as CLIP reads it: lower case, no commas, single spaces."""
    return " ".join(fill_template("{}", word).lower().split())


def plain_name(name: str) -> str:
    """Return a class name as CLIP reads it, without underscores and the like: datasets spell names differently."""
    return same_to_clip(clean_name(name))


def clean_name(name: str) -> str:
    """Return a class name without underscores, parentheses and dataset suffixes.

    Upstream removes only `-other` and `-merged`, so the text encoder gets `aerosol_can`.
    """
    without_ending = name.replace("-other", "").replace("-merged", "")
    return " ".join(re.sub(r"[_()]", " ", without_ending).split())
