"""Captions of other pairs as negatives, and the loss that leaves out those about the same subject."""

import random

import pytest
import torch
from torch.nn import functional as F

from regionclip.clip.text_encoder import Tokenizer, tokenize
from regionclip.data.caption_loader import choose_caption
from regionclip.data.image_text.negatives import NegativeCaptions, subject_of
from regionclip.data.image_text.pairs import Pair
from regionclip.modeling.losses.pretraining import image_text_loss, image_text_loss_by_subject

TEXTS = ['{"captions": ["a dog"], "concepts": ["dog"]}', "a cat on a mat", '{"captions": [], "concepts": []}']


class Texts(list):
    """Texts by index, of which one is damaged."""

    def text(self, number):
        if self[number] is None:
            raise ValueError("damaged")
        return self[number]


def test_pairs_about_the_same_concepts_share_a_subject():
    same = [
        f'{{"caption": "{i}", "concepts": {names}}}' for i, names in enumerate(('["dog", "cat"]', '["cat", "dog"]'))
    ]
    assert subject_of(same[0]) == subject_of(same[1])
    assert len({subject_of(text) for text in (*same, *TEXTS, "a dog", '{"caption": "a dog"}', "")}) == 7
    assert all(-(2**63) <= subject_of(text) < 2**63 for text in TEXTS)


def test_negatives_are_captions_of_any_pair():
    tokenizer = Tokenizer()
    texts = Texts([*TEXTS, None])
    mapper = NegativeCaptions(lambda record: {"tokens": 1}, texts, choose_caption, tokenizer, 40)
    random.seed(0)
    mapped = mapper({"pair": Pair("a", b"", TEXTS[0])})
    assert mapped["tokens"] == 1
    assert mapped["subject"] == subject_of(TEXTS[0])
    assert mapped["negative_tokens"].shape == (40, 77)
    expected = {subject_of(text): tokenize([choose_caption(text)], tokenizer)[0] for text in (*TEXTS, "")}
    assert {int(subject) for subject in mapped["negative_subjects"]} == set(expected)
    for tokens, subject in zip(mapped["negative_tokens"], mapped["negative_subjects"], strict=True):
        assert torch.equal(tokens, expected[int(subject)])


def plain_loss(images, texts, subjects, text_subjects, temperature):
    """Compute the loss one row at a time."""
    images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    total = torch.tensor(0.0, dtype=torch.float64)
    for i, image in enumerate(images):
        kept = [j for j in range(len(texts)) if j == i or text_subjects[j] != subjects[i]]
        logits = torch.stack([image @ texts[j] for j in kept]) / temperature
        total += logits.logsumexp(0) - image @ texts[i] / temperature
        kept = [j for j in range(len(images)) if j == i or subjects[j] != text_subjects[i]]
        logits = torch.stack([images[j] @ texts[i] for j in kept]) / temperature
        total += logits.logsumexp(0) - image @ texts[i] / temperature
    return total / (2 * len(images))


@pytest.mark.parametrize("more", [0, 5])
def test_the_loss_by_subject_equals_its_definition(more):
    torch.manual_seed(more)
    images, texts = torch.randn(6, 4, dtype=torch.float64), torch.randn(6 + more, 4, dtype=torch.float64)
    subjects, others = torch.tensor([1, 2, 1, 3, 4, 5]), torch.tensor([2, 9, 1, 9, 7])[:more]
    every = torch.cat([subjects, others])
    loss = image_text_loss_by_subject(images, texts, subjects, every, 0.1)
    torch.testing.assert_close(loss, plain_loss(images, texts, subjects, every, 0.1))


def test_without_equal_subjects_and_negatives_it_is_the_loss_of_clip():
    images, texts = torch.randn(5, 8), torch.randn(5, 8)
    subjects = torch.arange(5)
    torch.testing.assert_close(
        image_text_loss_by_subject(images, texts, subjects, subjects, 0.07), image_text_loss(images, texts, 0.07)
    )
