"""Prompts whose answers have very different lengths: kinds of task times topics, in a fixed order. Data only."""

from __future__ import annotations

import random
from dataclasses import dataclass

TASKS = (
    "Answer in one word: which colour goes best with {0}?",
    "Answer with yes or no only: is {0} older than television?",
    "Give one synonym or near-synonym for '{0}'.",
    "Translate '{0}' into French. Only the translation.",
    "What is {0}? Answer in one sentence.",
    "Name three things that people associate with {0}.",
    "Write a haiku about {0}.",
    "Write a slogan for a shop that sells {0}.",
    "List five facts about {0}.",
    "In two sentences, why does {0} matter?",
    "What is the opposite of {0}, and why?",
    "Explain {0} to a five-year-old.",
    "Give me two advantages and two disadvantages of {0}.",
    "Write a limerick about {0}.",
    "Who first wrote about {0}?",
    "How does {0} work?",
    "Write a short poem about {0}.",
    "Compare {0} with the weather.",
    "Write a tweet about {0}.",
    "Write an email that invites a colleague to a talk about {0}.",
    "What questions would you ask an expert on {0}?",
    "Describe {0} in one paragraph.",
    "Give step-by-step instructions for a beginner who wants to learn about {0}.",
    "Write a short story about {0}.",
    "Write a dialogue between two friends who disagree about {0}.",
    "Write a detailed essay on the history of {0}.",
    "Plan a one-hour lesson about {0}.",
    "Write a Python function that prints a line about {0}.",
    "Make a table with three rows about {0}.",
    "Write a review of a book about {0}.",
)
TOPICS = (
    "bicycles", "the moon", "coffee", "chess", "rain", "libraries", "volcanoes", "bread", "the violin", "ants",
    "winter", "airports", "honey", "democracy", "mirrors", "gravity", "gardening", "lighthouses", "money", "dreams",
    "tea", "glaciers", "photography", "soap", "football", "whales", "maps", "clocks", "silence", "paper",
    "friendship", "elevators", "cheese", "rivers", "painting", "electricity", "trains", "salt", "theatre", "bees",
    "deserts", "umbrellas", "mathematics", "islands", "jazz", "bridges", "wolves", "shoes", "the internet", "sleep",
    "tomatoes", "castles", "marathons", "magnets", "spices", "comets", "puppets", "robots", "kites", "forests",
    "medicine", "windows", "origami", "owls", "taxes", "lightning", "submarines", "chocolate", "languages", "sand",
    "statues", "fishing", "balloons", "vaccines", "rainbows", "markets", "satellites", "wool", "comedy", "glass",
    "earthquakes", "dancing", "pencils", "dinosaurs", "cathedrals", "patience", "yoghurt", "storms", "museums", "rice",
    "telescopes", "camping", "lemons", "pyramids", "insects", "sailing", "poetry", "batteries", "penguins", "ink",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prompt:
    """kind: which of TASKS."""

    text: str
    kind: int


def made_prompts(count: int, seed: int = 0) -> list[Prompt]:
    """`count` different ones, at most len(TASKS) * len(TOPICS); the same for the same seed."""
    every = [Prompt(task.format(topic), kind) for kind, task in enumerate(TASKS) for topic in TOPICS]
    random.Random(seed).shuffle(every)
    return every[:count]
