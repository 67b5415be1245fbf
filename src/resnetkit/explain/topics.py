"""Answer words and questions about residual networks, with the numbers of the network at hand.

`topics.toml` has a row for each topic: its words, its question, the answer and its source. The answer names facts of
`network_facts`, which become sentences about this network.

This module imports no torch.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from resnetkit.architecture.plan import Plan
from resnetkit.explain.network_facts import FACTS

_KEYWORD, _IN_QUESTION, _NAME = 1, 2, 3  # how much a word of a topic counts
_MIN_SCORE = 0.5  # the share of a question's weight that a topic must match
_STEM_LENGTH = 6  # letters that words with the same root share: `project`, `projection`
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a about actually also am an and any are as at be been before better between but by can could did
        differ difference differences different differs do does doesn doing don each else ever exactly explain
        follow follows for from get gets given go has have he here how i in into is it its just know like make
        many me mean means more my need network networks neural not of on one only or our please really resnet
        resnets s should so some somebody t than that the their them then there these they this to understand up
        us use used uses using very want was we what whats when where which while who why will with work works
        would you your anyone code example help implementation question python pytorch working""",
    )
)


@dataclass(frozen=True)
class Topic:
    """A word or question: the words that name it, and an answer with facts in braces."""

    words: tuple[str, ...]
    question: str
    keywords: str
    text: str
    source: str

    @property
    def name(self) -> str:
        """The first of its words."""
        return self.words[0]

    def answer(self, plan: Plan) -> str:
        """Return the answer for a network in one line."""
        names = re.findall(r"\{(\w+)\}", self.text)
        return " ".join(self.text.format(**{name: FACTS[name](plan) for name in names}).split())


@cache
def read_topics() -> tuple[Topic, ...]:
    """Read the topics in the order of the file."""
    rows = tomllib.loads(files("resnetkit.explain").joinpath("topics.toml").read_text(encoding="utf-8"))["topics"]
    return tuple(Topic(**{**row, "words": tuple(row["words"])}) for row in rows)


def list_topic_words() -> list[str]:
    """List every word that names a topic."""
    return [word for topic in read_topics() for word in topic.words]


def find_topic(query: str) -> Topic | None:
    """Return the topic of a word, such as ``downsample`` or ``self._make_layer()``, or None."""
    word = re.sub(r"\(.*\)$", "", " ".join(query.lower().split()).strip("`'\"?!.,: "))
    spellings = (word, word.replace("-", " "), re.sub(r"^(?:[a-z_]+\.)+", "", word))  # nn.relu, resnet._make_layer
    return next((topic for spelling in spellings for topic in read_topics() if spelling in topic.words), None)


def match_question(question: str) -> Topic | None:
    """Return the topic that shares the rarest words with a question, or None if they are too few."""
    words, weights = _split_words(question), _weigh_words()
    scores = {topic: sum(weights[word] * counts[word] for word in words & counts.keys())
              for topic, counts in _count_topic_words().items()}  # fmt: skip
    best = max(scores, key=lambda topic: scores[topic])
    counts = _count_topic_words()[best]
    known = [counts[word] for word in words & counts.keys()]
    is_enough = 3 * len(known) > len(words) and (len(known) > 1 or _NAME in known)
    max_score = sum(weights.get(word, max(weights.values())) for word in words)
    return best if is_enough and scores[best] >= _MIN_SCORE * max_score else None


def _split_words(text: str) -> set[str]:
    """Return the words of a text by their roots, without those that every question has."""
    bare_text = re.sub(r"res-?net-?\d+\w*", "", text.lower())  # the name of a network tells nothing about the question
    return _find_roots(bare_text) or _find_roots(text.lower())


def _find_roots(text: str) -> set[str]:
    words = re.findall(r"\d+x\d+|[a-z_]+|\d+(?:\.\d+)?", text)
    return {_get_root(word) for word in words if word not in _STOP_WORDS}


def _get_root(word: str) -> str:
    return word if "_" in word else re.sub("(?<=[a-z]{2})(s|es|ed|ing)$", "", word)[:_STEM_LENGTH]


@cache
def _count_topic_words() -> dict[Topic, Counter[str]]:
    """Return the words of each topic and how much they count."""
    counts = {}
    for topic in read_topics():
        texts = {_KEYWORD: topic.keywords, _IN_QUESTION: topic.question, _NAME: " ".join(topic.words)}
        counts[topic] = Counter({word: n for n, text in texts.items() for word in _find_roots(text.lower())})
    return counts


@cache
def _weigh_words() -> dict[str, float]:
    """Weigh each word: the fewer topics have it, the more it tells."""
    n_topics = Counter(word for counts in _count_topic_words().values() for word in counts)
    return {word: math.log(1 + len(read_topics()) / n) for word, n in n_topics.items()}
